"""ZeroFL: clients compute with sparse weights and send the largest of what results.

Qiu et al., "ZeroFL: Efficient On-Device Training for Federated Learning with Local
Sparsity", ICLR 2022 (Algorithm 1), with the local training of Raihan and Aamodt,
"Sparse Weight Activation Training" (SWAT), NeurIPS 2020. With ``T_k`` the mask of each
layer's ``k`` largest weights, ``r`` a tier's density and ``m`` the mask ratio,

    each client i:  z_i <- x, a few times z_i <- z_i - client_lr grad f_i(T_r(z_i) z_i)
                    N_i = T_{r+m}(z_i)                  top_k_weights
                    N_i = T_{r+m}(z_i - x)              top_k_difference
    server:         as in ``_sparse_round.py``, of d_i = N_i (z_i - x)

The gradient is by all weights, at the sparse ones, which are chosen anew in each step;
the derivative of a round holds the choice. The paper's activations are sparse too, in
the backward pass; here they are dense. Clients are sent the whole model: after a round
it is dense again. A density of 1 is FedAvg; with ``labels``, HeteroFL of width 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

import fad
from algorithms import _sparse_masks as masks
from algorithms._ranges import check_range
from algorithms._server_step import Weighting, move
from algorithms._sparse_config import BaseConfig
from algorithms._sparse_labels import Labels
from algorithms._sparse_round import Tier, sent, sparse_round
from algorithms._sparse_swat import swat

Variant = Literal["top_k_weights", "top_k_difference"]


class State(NamedTuple):
    """The server's state: the global model."""

    params: Any


def zerofl(
    task: fad.data.Task,
    *,
    densities: Sequence[float],
    client: optax.GradientTransformation,
    mask_ratio: float = 0.1,
    variant: Variant = "top_k_weights",
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    labels: bool = False,
) -> fad.Algorithm:
    """Build ZeroFL.

    Args:
        task: The task.
        densities: The share of the weights that each tier computes with, ``1 - sp``.
        client: The clients' optimizer; it starts afresh every round.
        mask_ratio: How much more of the weights are sent.
        variant: Which weights are sent.
        server_lr: The server step eta.
        weighting: Weigh clients by their examples, or all the same.
        labels: Whether clients leave out the labels that they do not have.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss with sparse weights
        before each local step, and ``covered``, the share of the weights that came.
    """
    known = Labels(task, labels)

    def tier(params, density):
        sizes = masks.sizes(params)
        used, told = (
            masks.layer_counts(params, min(1.0, share), "uniform")
            for share in (density, density + mask_ratio)
        )

        def work(params, mask, batches, loss):
            local = swat(params, batches, used, loss, client)
            chosen = local.params if variant == "top_k_weights" else local.delta
            mask = masks.top(jnp.abs(masks.split(chosen)[0]), sizes, told)
            return sent(local, mask, weighting)

        whole = jnp.ones(sum(sizes), bool)
        return Tier(work, whole, sum(sizes), sum(told), told=True)

    def step(state, cohort, key):
        del key
        tiers = [tier(state.params, density) for density in densities]
        mean = sparse_round(state.params, cohort, tiers, known)
        return State(move(state.params, mean.delta, server_lr)), mean.metrics

    return fad.Algorithm(lambda key: State(task.init(key)), step)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of ZeroFL."""

    mask_ratio: float = 0.1
    variant: Variant = "top_k_weights"

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "[0, 1)", "mask_ratio")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    return config.algorithm(zerofl, task)
