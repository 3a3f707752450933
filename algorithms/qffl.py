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

The paper draws clients by p_k; here p_k, examples or all the same, is in the sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._server_step import Weighting, screened, server_step, weigh
from algorithms._taking_part import Nonfinite, where
from algorithms.fedavg import State


def qffl(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    q: float,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    lipschitz: float,
    variant: Literal["avg", "sgd"] = "avg",
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build q-FedAvg or q-FedSGD, with the arguments of ``fedavg.fedavg`` and its own.

    ``lipschitz`` is L, one over the step that suits q = 0. The server's optimizer takes
    ``sum Delta / sum h`` for a gradient; its step is 1 in the paper.

    Returns:
        The algorithm; its metrics are FedAvg's, with the loss at x, and ``loss_to_q``.
    """

    def init(key):
        params = init_params(key)
        return State(params, server.init(params))

    @fad.program
    def step(state, cohort, key):
        x = state.params

        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            options = {"loss": loss, "key": own}
            if variant == "sgd":
                evaluate = jax.value_and_grad(fad.local.evaluate, has_aux=True)
                (value, n), u = evaluate(x, batches, **options)
            else:
                value, n = fad.local.evaluate(x, batches, **options)
                local = fad.local.train(x, batches, optimizer=client, **options)
                u = jax.tree.map(lambda d: -lipschitz * d, local.delta)
            to_q, h = _powers(value, u, q, lipschitz)
            weight, left_out = weigh((u, h, value), n, weighting, nonfinite)
            share = weight.astype(value.dtype)
            parts = jax.tree.map(lambda v: (share * to_q).astype(v.dtype) * v, u)
            sent = where(weight > 0, (parts, share * h), 0)
            return sent, (value, to_q), (weight, left_out)

        sent, powers, who = fad.map(client_work, cohort)
        total, curvature = fad.sum(sent)
        safe = jnp.where(curvature == 0, jnp.ones_like(curvature), curvature)
        delta = jax.tree.map(lambda d: -d / safe.astype(d.dtype), total)
        params, memory = server_step(x, delta, state.server, server, server_lr)
        value, to_q = fad.weighted_mean(powers, who[0])
        metrics = {"train_loss": value, "loss_to_q": to_q, "server_lr": server_lr}
        return State(params, memory), screened(metrics, nonfinite, powers[0], *who)

    return fad.Algorithm(init, step)


def _powers(value, u, q, lipschitz):
    """Return ``F^q`` and ``h`` of one client; a loss of 0 has no power q - 1."""
    value = value + 1e-10
    square = sum(jnp.sum(d**2).astype(value.dtype) for d in jax.tree.leaves(u))
    to_q = value**q
    return to_q, q * value ** (q - 1) * square + lipschitz * to_q


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and q; L is one over the clients' step."""

    q: float = 1.0
    variant: Literal["avg", "sgd"] = "avg"

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if self.q < 0:
            raise ValueError(f"q: expected >= 0, got {self.q!r}")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    names = ("q", "variant", "server_lr", "weighting", "nonfinite")
    options = {name: getattr(config, name) for name in names}
    options |= {"server": server, "client": client, "lipschitz": 1 / config.client_lr}
    return qffl(task.loss, task.init, **options)
