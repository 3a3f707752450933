"""FedDyn: a regulariser of each client that changes with its past.

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021
(Algorithm 1). The server keeps h, a client g_i, its last gradient, all zero at first.
A round of the cohort P, of m clients in all, from the server's model x:

    each client i:  t_i ~ argmin_t  l_i(t) - <g_i, t> + alpha/2 |t - x|^2
                    g_i <- g_i - alpha (t_i - x)
    server:         h <- h - alpha/m * sum_P (t_i - x)
                    x <- mean_P t_i - h / alpha

The minimum is approached, as in the paper's experiments, by SGD from x:

    t <- t - client_lr (grad l_i(t) - g_i + alpha (t - x))

However near it comes: where nothing moves any more, full gradients have grad l_i(x) =
g_i and sum_i g_i = h = 0, so x is stationary for the mean loss, clients weighing the
same. A round sends what FedAvg's does. The first is one of FedProx, mu = alpha, with
the server step 1 + |P|/m. One client in all with exact minima is the proximal point
method, t <- argmin_t l(t) + alpha/2 |t - t_before|^2; all clients with one step of
client_lr = 1 / alpha are SGD with the gradient 2 grad l(x) - grad l(x_before).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._ranges import check_range
from algorithms._taking_part import Nonfinite, cohort_metrics, takes_part, where
from algorithms.hypergradient_descent import dot


class State(NamedTuple):
    """The server's state: its model x, and h, the mean of the clients' g_i."""

    params: Any
    h: Any


def feddyn(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    num_clients: int,
    alpha: float,
    client_lr: float,
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedDyn; a client's memory is its g_i.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        num_clients: m, the clients of the federation that have examples.
        alpha: The weight of the regulariser, above 0, the same for all clients.
        client_lr: The clients' step.
        nonfinite: Of an update that is not finite: ``refuse`` or ``exclude`` it.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step
        without the regulariser, ``excluded_clients`` and ``h_square``, ``|h|^2``.
    """

    def init(key):
        params = init_params(key)
        return State(params, jax.tree.map(jnp.zeros_like, params))

    @fad.program
    def step(state, cohort, key, memory):
        def client_work(batches, g_i):
            def regularise(g, past, t, x):
                return g - past + alpha * (t - x)

            x = state.params
            pull = optax.stateless(lambda g, t: jax.tree.map(regularise, g, g_i, t, x))
            own = fad.local.client_key(key, batches.client) if random_loss else None
            client = optax.chain(pull, optax.sgd(client_lr))
            local = fad.local.train(x, batches, loss=loss, optimizer=client, key=own)
            update = local.delta, local.loss
            counts, excluded = takes_part(update, local.num_examples, nonfinite)
            new = jax.tree.map(lambda g, d: g - alpha * d, g_i, local.delta)
            return where(counts, update, 0.0), counts, excluded, where(counts, new, g_i)

        update, counts, excluded, memory = fad.map(client_work, cohort, memory)
        delta, n = fad.weighted_mean(update[0], counts), fad.sum(counts)
        h = jax.tree.map(
            lambda h, d: h - alpha * n.astype(d.dtype) / num_clients * d, state.h, delta
        )
        params = jax.tree.map(lambda x, d, h: x + d - h / alpha, state.params, delta, h)
        params = where(n > 0, params, state.params)
        metrics = cohort_metrics(update[1], counts, excluded)
        return State(params, h), metrics | {"h_square": dot(h, h)}, memory

    return fad.Algorithm(init, step, init_client=lambda state: state.h)


@dataclass(frozen=True)
class Config:
    """The options of FedDyn."""

    alpha: float = 0.01
    client_lr: float = 0.1
    nonfinite: Nonfinite = "refuse"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "alpha", "client_lr")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    num_clients = int((task.train.sizes > 0).sum())
    return feddyn(task.loss, task.init, num_clients=num_clients, **asdict(config))
