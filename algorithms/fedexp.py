"""FedExP: a server step that the updates' diversity gives.

Jhunjhunwala, Wang and Joshi, "FedExP: Speeding Up Federated Averaging via
Extrapolation", ICLR 2023 (Algorithm 1), in the form that weighs clients by p_i:

    D_i = x_i - x,   D = sum_i p_i D_i                 one round of FedAvg
    eta = max(1, sum_i p_i |D_i|^2 / (2 (|D|^2 + eps)))
    x  <- x + eta * D

With p_i = 1/M this is the paper's step; its experiments weigh by examples, with eps
times the number of clients. The less the clients agree, the longer the step; with one
client, or with a large eps, it is FedAvg. Successive iterates oscillate, so the paper
judges the mean of the last two (``average_last``).

Nothing is learned, so no step is where this starts; the 1 above is ``State.lr``, the
shortest step, for what sweeps over server steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._ranges import check_range
from algorithms.fedavg import Weighting, average
from algorithms.hypergradient_descent import dot, move


class State(NamedTuple):
    """The server's state."""

    params: Any  # the model to use: x, or the mean of the last two
    iterate: Any  # x, where the next round starts
    lr: Any  # the shortest step


def fedexp(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    client: optax.GradientTransformation,
    server_lr: float = 1.0,
    eps: float = 1e-3,
    average_last: bool = True,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedExP.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        client: The clients' optimizer; it starts afresh every round.
        server_lr: The shortest step, 1 in the paper.
        eps: Bounds the step where the mean update is small.
        average_last: Whether ``params`` is the mean of the last two iterates.
        weighting: Weigh clients by their examples, or all the same.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        and ``server_lr``, eta.
    """

    def init(key):
        params = init_params(key)
        return State(params, params, jnp.asarray(server_lr, jnp.result_type(float)))

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            local = fad.local.train(
                state.iterate, batches, loss=loss, optimizer=client, key=own
            )
            sent = local.delta, dot(local.delta, local.delta), local.loss
            return sent, local.num_examples

        sent, num_examples = fad.map(client_work, cohort)
        delta, squared, train_loss = average(sent, num_examples, weighting)
        ratio = squared / (2 * (dot(delta, delta) + eps))
        lr = jnp.maximum(state.lr, ratio.astype(state.lr.dtype))
        iterate = move(state.iterate, delta, lr)
        params = iterate
        if average_last:
            params = jax.tree.map(lambda a, b: (a + b) / 2, state.iterate, iterate)
        metrics = {"train_loss": train_loss, "server_lr": lr}
        return State(params, iterate, state.lr), metrics

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config(fedavg.BaseConfig):
    """The options of FedAvg, and those of the step; the server optimizer is none."""

    eps: float = 1e-3
    average_last: bool = True

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if self.server != "sgd":
            raise ValueError(
                f'server: expected "sgd", the step is FedExP\'s, got {self.server!r}'
            )
        check_range(self, "(0, inf)", "eps")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    _, client = fedavg.optimizers(config)
    return fedexp(
        task.loss,
        task.init,
        client=client,
        server_lr=config.server_lr,
        eps=config.eps,
        average_last=config.average_last,
        weighting=config.weighting,
    )
