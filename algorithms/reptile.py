"""Reptile: a first-order learned initialisation.

Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018 (Algorithm 2),
with a cohort for the batch of tasks:

    each client i:  x_i <- K steps from x on its own batches
    server:         x <- x + eps * mean_i (x_i - x)

It is FedAvg in which clients of all sizes take the same K steps and count the same. One
step makes it FedSGD, which learns nothing about adaptation; from two on the expected
update has the term that makes the gradients of a client's batches agree (section 5.1).
As in the paper, eps can fall linearly to 0 over the training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms.fedavg import average


class State(NamedTuple):
    """The server's state: the model and the number of rounds so far."""

    params: Any
    round: Any


def reptile(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    client: optax.GradientTransformation,
    steps: int,
    server_lr: float = 1.0,
    decay_rounds: int | None = None,
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build Reptile.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row; with
            ``random_loss`` it is ``loss(params, examples, key)``.
        init_params: ``init_params(key) -> params``.
        client: The clients' optimizer; it starts afresh every round.
        steps: The local steps K, from the first batch again where a client has fewer.
        server_lr: The server step eps in the first round.
        decay_rounds: The rounds over which eps falls to 0; None keeps it.
        random_loss: Whether the loss takes a key.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        and ``server_lr``.
    """

    def init(key):
        return State(init_params(key), jnp.zeros((), jnp.int32))

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            taken = fad.local.take_steps(batches, steps)
            return fad.local.train(
                state.params, taken, loss=loss, optimizer=client, key=own
            )

        local = fad.map(client_work, cohort)
        delta, train_loss = average(
            (local.delta, local.loss), local.num_examples, "uniform"
        )
        lr = jnp.asarray(server_lr, train_loss.dtype)
        if decay_rounds is not None:
            left = 1 - state.round.astype(lr.dtype) / decay_rounds
            lr *= jnp.maximum(left, 0)
        params = jax.tree.map(
            lambda p, d: p + lr.astype(d.dtype) * d, state.params, delta
        )
        metrics = {"train_loss": train_loss, "server_lr": lr}
        return State(params, state.round + 1), metrics

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config:
    """The options of Reptile; the paper's clients use Adam without momentum."""

    server_lr: float = 1.0
    decay_rounds: int | None = None
    client: Literal["sgd", "adam"] = "sgd"
    client_lr: float = 0.1
    client_steps: int = 5

    def __post_init__(self):
        """Check the ranges."""
        for name in ("server_lr", "client_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected > 0, got {getattr(self, name)!r}")
        for name in ("client_steps", "decay_rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value!r}")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    lr, adam = config.client_lr, config.client == "adam"
    return reptile(
        task.loss,
        task.init,
        client=optax.adam(lr, b1=0.0) if adam else optax.sgd(lr),
        steps=config.client_steps,
        server_lr=config.server_lr,
        decay_rounds=config.decay_rounds,
    )
