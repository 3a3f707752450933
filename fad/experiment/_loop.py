"""One round of a run: the cohort, the step, the memories, what is measured."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fad._errors import ConfigError, FadError, RunError
from fad._strong import strong
from fad.data import ClientMemories
from fad.experiment._checkpoint import AnyLength
from fad.experiment._cohorts import make_cohorts
from fad.experiment._config import Experiment
from fad.experiment._processes import all_rows, own_clients, own_copy
from fad.experiment._step import (
    compile_step,
    evaluate,
    round_cost,
    test_names,
)
from fad.placement import AtClients


class Diverged(RunError):
    """A loss or the parameters of a run became infinite or NaN.

    Attributes:
        round: The round in which they did; the rows before it are in the run's folder.
    """

    def __init__(self, message: str, *, round: int) -> None:
        super().__init__(message)
        self.round = round


@dataclasses.dataclass(frozen=True)
class Keys:
    """The random streams of a run."""

    init: jax.Array
    data: jax.Array
    step: jax.Array


class Loop:
    """What one round needs and no other part of the run does."""

    def __init__(
        self,
        experiment: Experiment,
        algorithm: Any,
        task: Any,
        keys: Keys,
        folder: Any,
        mesh: Mesh | None,
    ) -> None:
        self.experiment, self.folder, self.mesh = experiment, folder, mesh
        if algorithm.init_client is not None and experiment.replace:
            raise ConfigError(
                "replace: this algorithm keeps something at each client, and there is "
                "one of it, so it cannot stand in a cohort twice. Leave replace out."
            )
        self._algorithm, self._task, self._keys = algorithm, task, keys
        self.cohorts = make_cohorts(experiment, task, keys.data, mesh)
        self._step = compile_step(algorithm, chunk=experiment.chunk, mesh=mesh)
        self._test = jax.device_put(task.test)
        self.memories: ClientMemories | None = None
        self._cost: tuple[int, int] | None = None
        self._tested: set[str] | None = None  # names of the test's metrics

    def start(self) -> Any:
        """Return the first state; the clients have their first memories then."""
        state = jax.tree.map(strong, self._algorithm.init(self._keys.init))
        if self._algorithm.init_client is not None:
            first = jax.tree.map(strong, self._algorithm.init_client(state))
            clients = self._task.train.num_clients
            self.memories = ClientMemories(jax.device_get(first), num_clients=clients)
        return state

    def saved(self, state: Any) -> dict[str, Any]:
        """Return what a checkpoint holds after a round."""
        held = {"state": own_copy(state, self.mesh), "cohorts": self.cohorts.state}
        if self.memories is not None:
            held["memories"] = self.memories.state()
        return held

    def restore(self, load: Callable[[Any], Any], state: Any) -> Any:
        """Go on from a checkpoint; return its state.

        Args:
            load: Reads the checkpoint, given what it should look like.
            state: A state of the algorithm.
        """
        like = {"state": state, "cohorts": self.cohorts.state}
        if self.memories is not None:
            rows = jax.tree.map(AnyLength.like, self.memories.state())
            like["memories"] = rows
        held = load(like)
        self.cohorts.restore(jax.device_get(held["cohorts"]))
        if self.memories is not None:
            self.memories.restore(held["memories"])
        return held["state"]

    def round(self, t: int, state: Any) -> tuple[Any, dict[str, float]]:
        """Run round ``t`` (from 1): the new state and the metrics of the round."""
        began = time.perf_counter()
        cohort = next(self.cohorts)
        key = jax.random.fold_in(self._keys.step, t)
        own = self._own(cohort)
        if self._cost is None:
            self._cost = round_cost(self._algorithm.step, state, cohort, key, *own)
            began = time.perf_counter()
        placed = [own_clients(x, self.mesh) for x in (cohort, *own)]
        output = self._step(state, placed[0], key, *placed[1:])
        new_state, metrics, finite, *kept = jax.block_until_ready(output)
        seconds = time.perf_counter() - began
        self._check_state(state, new_state)
        row = self._row(t, metrics, new_state)
        self._check_metrics(t, metrics)
        self._check_finite(t, row, bool(finite))
        self._keep(cohort, kept)
        down, up = self._cost
        return new_state, {
            **row,
            "seconds": seconds,
            "bytes_down": t * down,
            "bytes_up": t * up,
        }

    def _own(self, cohort: Any) -> tuple[Any, ...]:
        """Return the memories of the cohort's clients, if they have any."""
        if self.memories is None:
            return ()
        clients = np.asarray(cohort.unsafe_gather().client)
        return (AtClients(self.memories.read(clients)),)

    def _keep(self, cohort: Any, memories: list[Any]) -> None:
        if self.memories is not None:
            clients = np.asarray(cohort.unsafe_gather().client)
            self.memories.write(clients, all_rows(memories[0], self.mesh))

    def _row(self, t: int, metrics: dict[str, Any], state: Any) -> dict[str, float]:
        """Join the step's metrics and, where due, those of the test examples."""
        config, tested = self.experiment, {}
        if t % config.eval_every == 0 or t == config.rounds:
            params = own_copy(state.params, self.mesh)
            tested = evaluate(self._task, params, self._test)
        for name, x in metrics.items():
            if jnp.ndim(x):
                raise RunError(
                    f"algorithm.step: metrics[{name!r}] must be a scalar, got shape "
                    f"{jnp.shape(x)}"
                )
        if self._tested is None:
            self._tested = test_names(self._task, state.params, self._test)
        reserved = {"round", "seconds", "bytes_down", "bytes_up", *self._tested}
        values = {k: float(x) for k, x in jax.device_get(metrics).items()}
        named = {f"train_{k}" if k in reserved else k: v for k, v in values.items()}
        return {**named, **tested}

    def _check_metrics(self, t: int, metrics: dict[str, Any]) -> None:
        """Let the algorithm refuse its round."""
        if self._algorithm.check is None:
            return
        try:
            self._algorithm.check({k: float(x) for k, x in metrics.items()})
        except FadError as error:
            raise RunError(f"{self.folder}: round {t}: {error}") from error

    def _check_state(self, old: Any, new: Any) -> None:
        """Refuse a step that would compile anew every round."""
        before, after = (jax.tree_util.tree_leaves_with_path(s) for s in (old, new))
        if jax.tree.structure(old) != jax.tree.structure(new):
            raise RunError(
                f"algorithm.step must return a state of the same structure as it got: "
                f"{jax.tree.structure(old)} became {jax.tree.structure(new)}"
            )
        for (path, x), (_, y) in zip(before, after, strict=True):
            if (x.shape, x.dtype) != (y.shape, y.dtype):
                raise RunError(
                    f"algorithm.step must keep shapes and dtypes: "
                    f"state{jax.tree_util.keystr(path)} was {x.dtype}{list(x.shape)} "
                    f"and became {y.dtype}{list(y.shape)}"
                )

    def _check_finite(self, t: int, row: dict[str, float], finite: bool) -> None:
        losses = [k for k in row if k == "loss" or k.endswith("_loss")]
        bad = [f"{k} is {row[k]}" for k in losses if not math.isfinite(row[k])]
        bad += [] if finite else ["the parameters are not finite"]
        if bad:
            raise Diverged(
                f"{self.folder}: round {t}: {', '.join(bad)}. The last checkpoint "
                f"before it is kept. A smaller learning rate is the likely fix.",
                round=t,
            )
