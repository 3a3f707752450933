"""FedNova: averaging of what the clients' steps were on average.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020 (Equation 4 and Section 5). A client's update is a sum of
its gradients, D_i = x_i - x = -client_lr * G_i a_i, with coefficients a_i that its
optimizer gives. FedAvg weighs a client by p_i |a_i|_1, more steps more weight; FedNova
by p_i:

    x <- x + eta * tau * sum_i p_i D_i / |a_i|_1,   tau = sum_i p_i |a_i|_1

The clients' optimizer is SGD with momentum rho and a proximal term mu (Section 4.1):

    buf <- rho buf + grad,   x_i <- x_i - client_lr (buf + mu (x_i - x))
    c   <- rho c + 1,        |a|_1 <- (1 - client_lr mu) |a|_1 + c

With mu > 0 the paper's experiments take tau = sum_i p_i tau_i instead, the clients'
numbers of steps, against the slowdown by the proximal term (``effective = "steps"``).
With rho and mu both positive the authors' code counts each step once more than the
second line; this is what the first line implies. Where clients take the same number of
steps, FedNova is FedAvg.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms.fedavg import Weighting, average
from algorithms.hypergradient_descent import move

Effective = Literal["coefficients", "steps"]


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    server: Any  # the server optimizer's state
    lr: Any  # eta, which stays


def fednova(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client_lr: float,
    momentum: float = 0.0,
    mu: float = 0.0,
    effective: Effective = "coefficients",
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedNova.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        server: Turns the mean update, as a gradient, into a direction.
        client_lr: The clients' step.
        momentum: The clients' momentum rho, afresh every round.
        mu: The weight of the clients' proximal term.
        effective: What tau averages: the ``coefficients``' sums or the ``steps``.
        server_lr: The server step eta.
        weighting: Weigh clients by their examples, or all the same.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        ``server_lr`` and ``effective_steps``, tau.
    """
    client = optax.chain(
        optax.trace(momentum), _proximal(mu), optax.scale_by_learning_rate(client_lr)
    )

    def init(key):
        params = init_params(key)
        lr = jnp.asarray(server_lr, jnp.result_type(float))
        return State(params, server.init(params), lr)

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            local = fad.local.train(
                state.params, batches, loss=loss, optimizer=client, key=own
            )
            norm = _norm(
                local.num_steps, batches.mask.shape[0], momentum, mu * client_lr
            )
            steps = local.num_steps.astype(norm.dtype)
            share = 1 / jnp.where(steps > 0, norm, jnp.ones_like(norm))
            mean_step = jax.tree.map(lambda d: d * share.astype(d.dtype), local.delta)
            tau = norm if effective == "coefficients" else steps
            return (mean_step, tau, local.loss), local.num_examples

        sent, num_examples = fad.map(client_work, cohort)
        mean_step, tau, train_loss = average(sent, num_examples, weighting)
        gradient = jax.tree.map(lambda d: -tau.astype(d.dtype) * d, mean_step)
        direction, memory = server.update(gradient, state.server, state.params)
        params = move(state.params, direction, state.lr)
        names = ("train_loss", "server_lr", "effective_steps")
        metrics = dict(zip(names, (train_loss, state.lr, tau), strict=True))
        return State(params, memory, state.lr), metrics

    return fad.Algorithm(init, step)


def _proximal(mu: float) -> optax.GradientTransformation:
    """Add ``mu`` times the way from the params that training started from."""

    def update(updates, state, params=None):
        pull = jax.tree.map(lambda p, s: mu * (p - s), params, state)
        return jax.tree.map(jnp.add, updates, pull), state

    return optax.GradientTransformation(lambda params: params, update)


def _norm(steps: jax.Array, bound: int, momentum: Any, damping: Any) -> jax.Array:
    """Return ``|a|_1`` after ``steps`` of at most ``bound`` steps."""

    def count(carry, k):
        c = momentum * carry[0] + 1
        after = c, (1 - damping) * carry[1] + c
        return jax.tree.map(lambda a, b: jnp.where(k < steps, a, b), after, carry), None

    zero = jnp.zeros((), jnp.result_type(float))
    (_, norm), _ = jax.lax.scan(count, (zero, zero), jnp.arange(bound))
    return norm


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and those of the proximal term."""

    mu: float = 0.0
    effective: Effective = "coefficients"

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.mu * self.client_lr < 1:
            raise ValueError(
                f"mu: expected >= 0 and < 1 / client_lr, got {self.mu!r} with "
                f"client_lr = {self.client_lr!r}"
            )


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, _ = fedavg.optimizers(config)
    return fednova(
        task.loss,
        task.init,
        server=server,
        client_lr=config.client_lr,
        momentum=config.client_momentum,
        mu=config.mu,
        effective=config.effective,
        server_lr=config.server_lr,
        weighting=config.weighting,
    )
