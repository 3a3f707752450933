"""FedDST: dynamic sparse training, whose masks clients readjust.

Bibikar et al., "Federated Dynamic Sparse Training", AAAI 2022 (Algorithm 1), with
RigL's prune-and-grow. The global model x is as dense as the densest tier; ``T_k`` is
the mask of each layer's ``k`` largest weights. In round t

    each client i:  M_i = T_k(x), the k of its tier;    N_i = M_i, but in every
                    readjust-th round up to ``until`` each layer's smallest a_t k are
                    dropped, and as many of largest gradient on its first batch grown,
                    from zero,    a_t = share / 2 (1 + cos(pi t / until))
                    z_i <- local steps from N_i M_i x, within N_i
    server:         x <- x + eta D, of ``_sparse_round.py``;    x <- T_k(x) x

With eta = 1 and one density it is the paper's mean over holders. What nobody holds
stays until it is pruned. The paper readjusts later in a round; here a client of few
batches too trains what it grows. A density of 1 is FedAvg; with ``labels``, it is
HeteroFL of width 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import _sparse_masks as masks
from algorithms._ranges import check_range
from algorithms._server_step import Weighting, move
from algorithms._sparse_config import BaseConfig
from algorithms._sparse_labels import Labels
from algorithms._sparse_regrow import pruned, regrown, train_masked
from algorithms._sparse_round import Tier, sent, sparse_round


class State(NamedTuple):
    """The server's state: the sparse model, and the number of rounds."""

    params: Any
    rounds: jax.Array


def feddst(
    task: fad.data.Task,
    *,
    densities: Sequence[float],
    client: optax.GradientTransformation,
    readjust: int = 5,
    until: int = 100,
    share: float = 0.5,
    layers: masks.Layers = "erk",
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    labels: bool = False,
) -> fad.Algorithm:
    """Build FedDST.

    Args:
        task: The task.
        densities: The share of the weights that the clients of each tier hold.
        client: The clients' optimizer; it starts afresh every round.
        readjust: Masks change in every such round.
        until: The last round in which they may.
        share: The share of weights that is replaced at first.
        layers: How layers share them, as in ``_sparse_masks.layer_counts``.
        server_lr: The server step eta.
        weighting: Weigh clients by their examples, or all the same.
        labels: Whether clients leave out the labels that they do not have.

    Returns:
        The algorithm; its metrics are ``train_loss`` and, of the weights, ``covered``.
    """
    most, known = max(densities), Labels(task, labels)

    def largest(params, density=most):
        return pruned(params, masks.layer_counts(params, density, layers))

    def init(key):
        return State(largest(task.init(key))[0], jnp.zeros((), jnp.int32))

    def step(state, cohort, key):
        del key
        t = state.rounds + 1
        falling = share / 2 * (1 + jnp.cos(jnp.pi * t.astype(jnp.float32) / until))
        replaced = jnp.where((t % readjust == 0) & (t <= until), falling, 0.0)

        def work(params, mask, batches, loss):
            params, mask = regrown(params, mask, batches, loss, replaced)
            local = train_masked(params, mask, batches, loss=loss, client=client)
            return sent(local, mask, weighting)

        tiers = []
        for density in densities:
            k = sum(masks.layer_counts(state.params, density, layers))
            _, mask = largest(state.params, density)
            tiers.append(Tier(work, mask, k, k, told=True))
        mean = sparse_round(state.params, cohort, tiers, known)
        params, _ = largest(move(state.params, mean.delta, server_lr))
        return State(params, t), mean.metrics

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of FedDST."""

    readjust: int = 5
    until: int = 100
    share: float = 0.5
    layers: masks.Layers = "erk"

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "[1, inf)", "readjust", "until")
        check_range(self, "[0, 1]", "share")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    return config.algorithm(feddst, task)
