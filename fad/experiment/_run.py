"""The run loop: rounds, evaluation, metrics, checkpoints, resume."""

import contextlib
import dataclasses
import functools
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fad._errors import FadError, RunError
from fad._strong import strong
from fad.distributed import check_agreement
from fad.experiment import _folder
from fad.experiment._checkpoint import Checkpoints
from fad.experiment._cohorts import make_cohorts
from fad.experiment._config import Experiment
from fad.experiment._figure import plot_run
from fad.experiment._metrics import JsonlWriter, Row, keep_rows, read_rows
from fad.experiment._processes import any_of, by_first, leads, own_clients, own_copy
from fad.experiment._progress import Progress
from fad.experiment._step import (
    compile_step,
    evaluate,
    round_cost,
    test_names,
)
from fad.experiment._stop import Stopped, stop_request


class Diverged(RunError):
    """A loss or the parameters of a run became infinite or NaN.

    Attributes:
        round: The round in which they did; the rows before it are in the run's folder.
    """

    def __init__(self, message: str, *, round: int) -> None:
        super().__init__(message)
        self.round = round


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        folder: The run folder.
        state: The algorithm's last state; ``state.params`` is the model, of two levels
            ``(x, y)``.
        rows: The rows of ``metrics.jsonl``, one a round.
    """

    folder: Path
    state: Any
    rows: list[Row]


def run(
    experiment: Experiment,
    algorithm: Any,
    task: Any,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> RunResult:
    """Run an experiment and write its folder.

    The folder gets ``config.toml``, ``metrics.jsonl``, ``checkpoints/`` and
    ``figure.png``. Every random number depends on ``experiment.seed`` and the round
    alone: a run that was stopped and resumed gives the same bits as one that was not.

    Args:
        experiment: Length of training, cohorts, seed.
        algorithm: The ``fad.Algorithm``.
        task: The ``fad.data.Task`` or ``fad.data.BilevelTask``.
        folder: The run folder.
        resume: Continue the run in the folder; only ``rounds`` may have grown.
        overwrite: Replace the run in the folder.
        progress: Show progress on stderr.
        mesh: Devices over which the clients are split, ``fad.distributed.mesh()``. All
            of its processes call ``run`` together with one folder, which process 0
            alone writes, as it alone shows progress.

    Returns:
        The folder, the last state and the metrics.

    Raises:
        RunError: The folder holds a run already; it cannot be resumed; it cannot be
            written.
        Diverged: A loss or the parameters are not finite.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was left.

    Example:
        Training that averages the clients' models after one local pass:

        >>> import collections, tempfile, typing, fad, optax
        >>> from fad.experiment import DataConfig, ModelConfig, make_task
        >>> data, model = DataConfig(clients=4), ModelConfig(name="logistic")
        >>> task = make_task(data, model)
        >>> State = collections.namedtuple("State", "params")
        >>> @fad.program
        ... def step(state, cohort, key):
        ...     sgd = dict(loss=task.loss, optimizer=optax.sgd(0.5))
        ...     train = lambda batches: fad.local.train(state.params, batches, **sgd)
        ...     delta = fad.mean(fad.map(train, cohort).delta)
        ...     return State(optax.apply_updates(state.params, delta)), {}
        >>> algorithm = fad.Algorithm(lambda key: State(task.init(key)), step)
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     name: typing.ClassVar[str] = "averaging"
        >>> experiment = Experiment(
        ...     name="short",
        ...     rounds=2,
        ...     eval_every=1,
        ...     checkpoint_every=2,
        ...     cohort=4,
        ...     batch_size=32,
        ...     epochs=1,
        ...     algorithm=Config(),
        ...     data=data,
        ...     model=model,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(experiment, algorithm, task, folder, progress=False)
        ...     sorted(path.name for path in result.folder.iterdir())
        ['checkpoints', 'config.toml', 'figure.png', 'metrics.jsonl']
        >>> result.rows[-1]["accuracy"] > result.rows[0]["accuracy"]
        True
    """
    folder = Path(folder)
    options = {"resume": resume, "overwrite": overwrite}
    keys = _Keys(*jax.random.split(jax.random.key(experiment.seed), 3))
    # What does not fit the data is refused before there is a folder.
    loop = _Loop(experiment, algorithm, task, keys, folder, mesh)
    by_first(lambda: _folder.prepare(experiment, folder, **options))
    checkpoints = Checkpoints(folder / "checkpoints")
    with contextlib.closing(loop.cohorts):
        state = jax.tree.map(strong, algorithm.init(keys.init))
        start = max(checkpoints.rounds(), default=0)
        if start:
            like = {"state": state, "cohorts": loop.cohorts.state}
            saved = checkpoints.load(start, like)
            state = saved["state"]
            loop.cohorts.restore(jax.device_get(saved["cohorts"]))
        check_agreement(f"fad.experiment.run({folder}, from round {start})", [])
        by_first(lambda: keep_rows(folder / "metrics.jsonl", start))
        rows, shown = read_rows(folder / "metrics.jsonl"), progress and leads()
        view = Progress(experiment.name, experiment.rounds, start=start, enabled=shown)
        with contextlib.closing(view):
            state = _train(loop, checkpoints, start, state, rows, view)
    by_first(lambda: plot_run(folder, title=experiment.name))
    return RunResult(folder=folder, state=state, rows=rows)


def _train(
    loop: "_Loop",
    checkpoints: Checkpoints,
    start: int,
    state: Any,
    rows: list[Row],
    view: Progress,
) -> Any:
    """Run the rounds that are left, appending to ``rows``; return the last state."""
    config, folder = loop.experiment, loop.folder
    writer = JsonlWriter(folder / "metrics.jsonl" if leads() else Path(os.devnull))
    with contextlib.closing(writer), stop_request() as stop_requested:
        for t in range(start + 1, config.rounds + 1):
            state, row = loop.round(t, state)
            rows.append({"round": t, **row})
            writer.write(t, row)
            view.update(t, row)
            stop = any_of(stop_requested())
            if stop or t % config.checkpoint_every == 0 or t == config.rounds:
                whole = own_copy(state, loop.mesh)
                saved = {"state": whole, "cohorts": loop.cohorts.state}
                by_first(functools.partial(checkpoints.save, t, saved))
            if stop:
                raise Stopped(
                    f"{folder}: stopped after round {t} of {config.rounds}; "
                    f"continue with --resume"
                )
    return state


@dataclasses.dataclass(frozen=True)
class _Keys:
    """The random streams of a run."""

    init: jax.Array
    data: jax.Array
    step: jax.Array


class _Loop:
    """What one round needs and no other part of the run does."""

    def __init__(
        self,
        experiment: Experiment,
        algorithm: Any,
        task: Any,
        keys: _Keys,
        folder: Any,
        mesh: Mesh | None,
    ) -> None:
        self.experiment, self.folder, self.mesh = experiment, folder, mesh
        self._algorithm, self._task, self._keys = algorithm, task, keys
        self.cohorts = make_cohorts(experiment, task, keys.data, mesh)
        self._step = compile_step(algorithm, chunk=experiment.chunk, mesh=mesh)
        self._test = jax.device_put(task.test)
        self._cost: tuple[int, int] | None = None
        self._tested: set[str] | None = None  # names of the test's metrics

    def round(self, t: int, state: Any) -> tuple[Any, dict[str, float]]:
        """Run round ``t`` (from 1): the new state and the metrics of the round."""
        began = time.perf_counter()
        cohort = next(self.cohorts)
        key = jax.random.fold_in(self._keys.step, t)
        if self._cost is None:
            self._cost = round_cost(self._algorithm.step, state, cohort, key)
            began = time.perf_counter()
        cohort = own_clients(cohort, self.mesh)
        output = self._step(state, cohort, key)
        new_state, metrics, finite = jax.block_until_ready(output)
        seconds = time.perf_counter() - began
        self._check_state(state, new_state)
        row = self._row(t, metrics, new_state)
        self._check_metrics(t, metrics)
        self._check_finite(t, row, bool(finite))
        down, up = self._cost
        return new_state, {
            **row,
            "seconds": seconds,
            "bytes_down": t * down,
            "bytes_up": t * up,
        }

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
