"""The inner runs of meta-training: which federation each draws, and its cohorts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import ConfigError
from fad.data import Federated
from fad.experiment._clients import clients_and_held_out
from fad.experiment._meta_config import Federation, MetaTraining
from fad.experiment._sets import Source, read
from fad.experiment._task import make_task
from fad.local import Batches
from fad.placement import AtClients


class Family:
    """The federations that one entry of the configuration describes."""

    def __init__(self, config: MetaTraining, federation: Federation) -> None:
        self.label, self._config, self._federation = (
            federation.label,
            config,
            federation,
        )
        task = make_task(federation.data, federation.model)
        self.loss, self.init = task.loss, jax.jit(task.init)
        # Only the synthetic set is another one with another seed.
        made = federation.data.set == "synthetic"
        self._source = (
            None if made else _some(read(federation.data), federation, config)
        )
        self.draw(np.random.SeedSequence(config.seed))  # What does not fit, now.

    def draw(self, seed: np.random.SeedSequence) -> tuple[Federated, float]:
        """Draw a federation and its clients' step."""
        federation, rng = self._federation, np.random.default_rng(seed)
        changes: dict[str, Any] = {"seed": int(rng.integers(2**31))}
        if federation.alpha:
            changes["alpha"] = _log_uniform(rng, federation.alpha)
        lr = _log_uniform(rng, federation.client_lr)
        data = dataclasses.replace(federation.data, **changes)
        clients, *_ = clients_and_held_out(self._source or read(data), data)
        if clients.num_clients < self._config.cohort:
            raise ConfigError(
                f"federation {self.label!r}: cohort = {self._config.cohort}, but there "
                f"are {clients.num_clients} clients. Use a smaller cohort."
            )
        return clients, lr

    def window(
        self, clients: Federated, key: jax.Array, start: int
    ) -> AtClients[Batches]:
        """Return the cohorts of a window from round ``start`` on: ``[k, n, *]``.

        They have as many steps whatever the draw, so that one compilation serves all.
        """
        config = self._config
        each = -(-config.max_examples // config.batch_size)
        cohorts = [
            clients.cohort(
                jax.random.fold_in(key, start + i),
                config.cohort,
                batch_size=config.batch_size,
                epochs=config.epochs,
                max_examples=config.max_examples,
                bucket_growth=None,
            ).unsafe_gather()
            for i in range(config.window)
        ]

        def stack(*xs: np.ndarray) -> jax.Array:
            x = np.stack(xs)
            if x.ndim > 2:  # All but the clients' numbers: [k, n, steps, batch, *].
                short = each * config.epochs - x.shape[2]
                x = np.pad(x, [(0, 0), (0, 0), (0, short)] + [(0, 0)] * (x.ndim - 3))
            return jnp.asarray(x)

        return AtClients(jax.tree.map(stack, *cohorts))


def _some(source: Source, federation: Federation, config: MetaTraining) -> Source:
    """Keep only so many examples, the same ones in every draw."""
    count, whole = federation.examples, source.clients.examples
    rows = len(whole["y"])
    if count is None or count >= rows:
        return source
    kept = np.random.default_rng(config.seed).permutation(rows)[:count]
    clients = Federated(
        {k: x[kept] for k, x in whole.items()}, np.array([0, count], np.int64)
    )
    return dataclasses.replace(source, clients=clients)


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(ends))))
