"""q-FFL: losses to the power q + 1, for a fairer spread of them over the clients.

Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020. The objective
(Eq. 2) is ``sum_k p_k F_k(x)^(q+1) / (q+1)``: the larger q, the more a client of large
loss counts; q = 0 is FedAvg. Algorithms 1 and 2, q-FedSGD and q-FedAvg:

    each client k:  F_k at the model x it was sent
                    u_k = grad F_k(x)                      q-FedSGD
                    u_k = L (x - x_k), x_k trained         q-FedAvg, L = 1 / client step
                    Delta_k = F_k^q u_k
                    h_k = q F_k^(q-1) |u_k|^2 + L F_k^q    bounds the curvature
    server:         x <- x - sum_k Delta_k / sum_k h_k

The paper samples clients with the probabilities p_k. Here they are sampled evenly, and
p_k is in the sums: their examples, or all the same (``weighting``). A client sends its
``Delta_k`` and ``h_k``, inside sums alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms.fedavg import State, Weighting, average

Variant = Literal["avg", "sgd"]
_LEAST = 1e-10  # A loss of 0 has no power q - 1.


def qffl(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    q: float,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    lipschitz: float,
    variant: Variant = "avg",
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build q-FedAvg or q-FedSGD.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        q: How much large losses count, at least 0.
        server: Turns ``sum Delta / sum h``, as a gradient, into a direction.
        client: The clients' optimizer of q-FedAvg.
        lipschitz: The paper's L, one over the step that suits q = 0.
        variant: ``avg`` or ``sgd``.
        server_lr: The server step; 1 in the paper.
        weighting: p_k: by examples, or all the same.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the cohort's loss at the model it
        was sent, ``loss_to_q``, the mean of its power q, and ``server_lr``.
    """

    def init(key):
        params = init_params(key)
        return State(params, server.init(params))

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None

            def mean_loss(x):
                return fad.local.evaluate(x, batches, loss=loss, key=own)

            if variant == "sgd":
                (before, n), u = jax.value_and_grad(mean_loss, has_aux=True)(
                    state.params
                )
            else:
                before, n = mean_loss(state.params)
                delta = fad.local.train(
                    state.params, batches, loss=loss, optimizer=client, key=own
                ).delta
                u = jax.tree.map(lambda d: -lipschitz * d, delta)
            share = (n if weighting == "examples" else n > 0).astype(before.dtype)
            to_q, h = _powers(before, u, q, lipschitz)
            parts = jax.tree.map(lambda v: (share * to_q).astype(v.dtype) * v, u)
            return (parts, share * h), (before, to_q), n

        terms, losses, n = fad.map(client_work, cohort)
        total, curvature = fad.sum(terms)
        safe = jnp.where(curvature == 0, jnp.ones_like(curvature), curvature)
        gradient = jax.tree.map(lambda d: d / safe.astype(d.dtype), total)
        direction, memory = server.update(gradient, state.server, state.params)
        params = jax.tree.map(lambda p, d: p + server_lr * d, state.params, direction)
        train_loss, to_q = average(losses, n, weighting)
        metrics = {"train_loss": train_loss, "loss_to_q": to_q, "server_lr": server_lr}
        return State(params, memory), metrics

    return fad.Algorithm(init, step)


def _powers(value, u, q, lipschitz):
    """Return ``F^q`` and ``h`` of one client."""
    value = value + _LEAST
    square = sum(jnp.sum(d**2).astype(value.dtype) for d in jax.tree.leaves(u))
    to_q = value**q
    return to_q, q * value ** (q - 1) * square + lipschitz * to_q


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and q; L is one over the clients' step."""

    q: float = 1.0
    variant: Variant = "avg"

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if self.q < 0:
            raise ValueError(f"q: expected >= 0, got {self.q!r}")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    return qffl(
        task.loss,
        task.init,
        q=config.q,
        server=server,
        client=client,
        lipschitz=1 / config.client_lr,
        variant=config.variant,
        server_lr=config.server_lr,
        weighting=config.weighting,
    )
