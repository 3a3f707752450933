"""Agnostic federated learning: weights that ascend to the worst mixture of clients.

Mohri et al., "Agnostic Federated Learning", ICML 2019: ``min_x max_lambda sum_k
lambda_k F_k(x)`` (Eq. 4), lambda on the simplex, by their STOCHASTIC-AFL: a descent
step of x and a projected ascent step of lambda. Here x's step is a round of FedAvg
whose clients weigh lambda_k, so several local steps are one round; with one they are
the paper's:

    each client k:  F_k at the model x it was sent, and x_k trained from it
    server:         x <- x + eta * direction(sum_k lambda_k (x_k - x) / sum_k lambda_k)
                    lambda <- project(lambda + gamma * F)

F is 0 at those that do not take part. lambda starts equal.

**What is revealed.** All of lambda is broadcast, and a client adds its loss to its own
place of a sum of vectors ``[num_clients]``. So the server, and whoever sees lambda,
learns each loss: inherent in AFL, made for few domains. The plan counts both vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._server_step import Weighting, screened, server_step, weigh
from algorithms._taking_part import Nonfinite, where


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    server: Any  # the server optimizer's state
    weights: jax.Array  # lambda, [num_clients]


def afl(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    num_clients: int,
    weights_lr: float,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build AFL, with the arguments of ``fedavg.fedavg`` and its own.

    ``weights_lr`` is gamma; ``weighting`` is how clients count in ``train_loss``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the cohort's loss at the model it
        was sent, ``agnostic_loss``, the same by lambda, and ``largest_weight``.
    """

    def init(key):
        params = init_params(key)
        equal = jnp.full(num_clients, 1 / num_clients, jnp.result_type(float))
        return State(params, server.init(params), equal)

    @fad.program
    def step(state, cohort, key):
        x, wide = state.params, state.weights.dtype

        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            options = {"loss": loss, "key": own}
            before, n = fad.local.evaluate(x, batches, **options)
            local = fad.local.train(x, batches, optimizer=client, **options)
            # All zeros for the number -1 of a place that stayed empty.
            place = jax.nn.one_hot(batches.client, num_clients, dtype=wide)
            share, left_out = weigh((local.delta, before), n, weighting, nonfinite)
            weight = where(share > 0, place @ state.weights, 0)
            losses = where(share > 0, place * before.astype(wide), 0)
            return (local.delta, before), weight, losses, (share, left_out)

        trained, weight, losses, who = fad.map(client_work, cohort)
        delta, agnostic = fad.weighted_mean(trained, weight)
        params, memory = server_step(x, delta, state.server, server, server_lr)
        ascended = state.weights + weights_lr * fad.sum(losses)
        weights = optax.projections.projection_simplex(ascended)
        metrics = {
            "train_loss": fad.weighted_mean(trained[1], who[0]),
            "agnostic_loss": agnostic,
            "largest_weight": weights.max(),
        }
        metrics = screened(metrics, nonfinite, trained[1], *who)
        return State(params, memory, weights), metrics

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and the step of lambda."""

    weights_lr: float = 0.01

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if self.weights_lr < 0:
            raise ValueError(f"weights_lr: expected >= 0, got {self.weights_lr!r}")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    names = ("weights_lr", "server_lr", "weighting", "nonfinite")
    options = {name: getattr(config, name) for name in names}
    options |= {"num_clients": task.train.num_clients}
    return afl(task.loss, task.init, server=server, client=client, **options)
