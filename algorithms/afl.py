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

**What is revealed.** The server keeps one weight per client. All of lambda is
broadcast, and each client takes its own by its number; it adds its loss to its own
place of a sum of vectors ``[num_clients]``. So the server, and whoever sees lambda,
learns each client's loss: that is inherent in AFL, which was made for few domains.
Both vectors count in ``fad.plan``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms.fedavg import Weighting, average


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
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build AFL with local training.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        num_clients: The clients of the federation, of which cohorts are parts.
        weights_lr: The step gamma of lambda.
        server: Turns the weighted mean update, as a gradient, into a direction.
        client: The clients' optimizer; it starts afresh every round.
        server_lr: The server step eta.
        weighting: How clients count in ``train_loss``.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

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
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            options = {"loss": loss, "key": own}
            before, n = fad.local.evaluate(state.params, batches, **options)
            local = fad.local.train(state.params, batches, optimizer=client, **options)
            # All zeros for the number -1 of a place that stayed empty.
            place = jax.nn.one_hot(
                batches.client, num_clients, dtype=state.weights.dtype
            )
            weight = jnp.where(n > 0, place @ state.weights, 0)
            losses = place * before.astype(place.dtype)
            return (local.delta, before), weight, n, losses

        trained, weight, n, losses = fad.map(client_work, cohort)
        delta, agnostic = fad.weighted_mean(trained, weight)
        gradient = jax.tree.map(lambda d: -d, delta)
        direction, memory = server.update(gradient, state.server, state.params)
        params = jax.tree.map(lambda p, d: p + server_lr * d, state.params, direction)
        weights = optax.projections.projection_simplex(
            state.weights + weights_lr * fad.sum(losses)
        )
        metrics = {
            "train_loss": average(trained[1], n, weighting),
            "agnostic_loss": agnostic,
            "largest_weight": weights.max(),
        }
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
    return afl(
        task.loss,
        task.init,
        num_clients=task.train.num_clients,
        weights_lr=config.weights_lr,
        server=server,
        client=client,
        server_lr=config.server_lr,
        weighting=config.weighting,
    )
