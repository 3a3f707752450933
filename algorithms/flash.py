"""FLASH: sparse training in masks whose layers' densities clients have measured.

Babakniya et al., "Revisiting Sparsity Hunting in Federated Learning: Why does Sparsity
Consensus Matter?", TMLR 2023 (FLASH, 2022; SPDST, and JMWST where masks change). With
the seed's model x, K weights to keep and ``T_k`` the mask of each layer's ``k_l``
largest weights,

    stage 1, ``sensing`` rounds:
        each client i:  z_i <- local steps from x, all weights
                        s_il = how many of z_i's K largest weights are layer l's
        server:         s <- the mean of s_i over clients and rounds;
                        at its end M = T_k(x), k = s in integers of the sum K
    stage 2:
        each client i:  M_i = M, or of it the largest in magnitude of its tier
                        N_i = M_i, but in every regrow-th round (JMWST) prune-and-grow
                        z_i <- local steps from N_i M_i x, within N_i
        server:         x <- x + eta D, of ``_sparse_round.py``;    x <- M x, in every
                        regrow-th round with M <- T_k(x)

A layer that needs more of its weights so gets more, the same for all clients. In stage
1 clients make x of the seed, nothing is learned and only s_i counts; the plan counts
both stages alike. Growth is ``_sparse_regrow.py``'s. Without regrowth the server knows
all masks. A density of 1 is FedAvg after stage 1; with ``labels``, HeteroFL of width 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._flash_stages import after, begin, budgets, sensed, tier_mask
from algorithms._ranges import check_range
from algorithms._server_step import Weighting
from algorithms._sparse_config import BaseConfig
from algorithms._sparse_labels import Labels
from algorithms._sparse_masks import sizes
from algorithms._sparse_regrow import regrown, train_masked
from algorithms._sparse_round import Tier, sent, sparse_round
from algorithms._taking_part import where


def flash(
    task: fad.data.Task,
    *,
    densities: Sequence[float],
    client: optax.GradientTransformation,
    sensing: int = 1,
    regrow: int = 0,
    share: float = 0.2,
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    labels: bool = False,
) -> fad.Algorithm:
    """Build FLASH.

    Args:
        task: The task.
        densities: The share of the weights that the clients of each tier hold.
        client: The clients' optimizer; it starts afresh every round.
        sensing: The rounds of stage 1.
        regrow: Masks change in every such round of stage 2; 0 for never (SPDST).
        share: The share of weights that is then replaced.
        server_lr: The server step eta.
        weighting: Weigh clients by their examples, or all the same.
        labels: Whether clients leave out the labels that they do not have.

    Returns:
        The algorithm; its metrics are ``train_loss``, before each local step, and
        ``covered``, the share of the weights that somebody sent.
    """
    known = Labels(task, labels)

    def init(key):
        params = task.init(key)
        return begin(params, key, max(budgets(sizes(params), densities)))

    def step(state, cohort, key):
        kept, t = budgets(sizes(state.params), densities), state.rounds + 1
        first, impl = t <= sensing, jax.random.key_impl(key)
        change = ~first & ((t - sensing) % regrow == 0) if regrow else False

        def work(params, mask, batches, loss):
            seed = jax.random.wrap_key_data(state.seed, impl=impl)
            params, mask = where(first, task.init(seed), params), mask | first
            if regrow:
                replaced = jnp.where(change, share, 0.0)
                params, mask = regrown(params, mask, batches, loss, replaced)
            local = train_masked(params, mask, batches, loss=loss, client=client)
            return sent(local, mask, weighting, sensed(local.params, max(kept)))

        tiers = [Tier(work, tier_mask(state, k), k, k, regrow > 0) for k in kept]
        mean = sparse_round(state.params, cohort, tiers, known)
        return after(state, mean, server_lr, max(kept), sensing, change), mean.metrics

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of FLASH."""

    sensing: int = 1
    regrow: int = 0
    share: float = 0.2

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "[1, inf)", "sensing")
        check_range(self, "[0, inf)", "regrow")
        check_range(self, "[0, 1]", "share")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    return config.algorithm(flash, task)
