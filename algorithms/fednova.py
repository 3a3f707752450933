"""FedNova: averaging of what the clients' steps were on average.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020 (Equation 4 and Section 5). A client's update is
D_i = x_i - x = -client_lr * G_i a_i, of its gradients, with coefficients a_i that its
optimizer gives. FedAvg weighs a client by p_i |a_i|_1, FedNova by p_i:

    x <- x + eta * tau * sum_i p_i D_i / |a_i|_1,   tau = sum_i p_i |a_i|_1

The clients' optimizer is SGD with momentum rho and a proximal term mu (Section 4.1):

    buf <- rho buf + grad,   x_i <- x_i - client_lr (buf + mu (x_i - x))
    c   <- rho c + 1,        |a|_1 <- (1 - client_lr mu) |a|_1 + c

With mu > 0 the paper's experiments take tau = sum_i p_i tau_i instead, the clients'
numbers of steps, against the proximal term's slowdown (``effective = "steps"``). With
rho and mu positive the authors' code counts each step once more than the second line,
which the first implies. Where clients take equally many steps, FedNova is FedAvg.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._coefficients import coefficients
from algorithms._proximal import proximal
from algorithms._server_step import Weighting, screened, server_step, weigh
from algorithms._taking_part import Nonfinite


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
    effective: Literal["coefficients", "steps"] = "coefficients",
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedNova, with the arguments of ``fedavg.fedavg`` and its own.

    ``effective`` is what tau averages, the ``coefficients``' sums or the ``steps``.

    Returns:
        The algorithm; its metrics are FedAvg's and ``effective_steps``, tau.
    """
    client = optax.chain(optax.trace(momentum), proximal(mu), optax.scale(-client_lr))

    def init(key):
        params = init_params(key)
        lr = jnp.asarray(server_lr, jnp.result_type(float))
        return State(params, server.init(params), lr)

    @fad.program
    def step(state, cohort, key):
        x, damping = state.params, mu * client_lr

        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            local = fad.local.train(x, batches, loss=loss, optimizer=client, key=own)
            norm = coefficients(local.num_steps, len(batches.mask), momentum, damping)
            steps = local.num_steps.astype(norm.dtype)
            share = 1 / jnp.where(steps > 0, norm, jnp.ones_like(norm))
            mean_step = jax.tree.map(lambda d: d * share.astype(d.dtype), local.delta)
            sent = mean_step, norm if effective == "coefficients" else steps, local.loss
            return sent, weigh(sent, local.num_examples, weighting, nonfinite)

        sent, who = fad.map(client_work, cohort)
        mean_step, tau, seen = fad.weighted_mean(sent, who[0])
        delta = jax.tree.map(lambda d: tau.astype(d.dtype) * d, mean_step)
        model = server_step(x, delta, state.server, server, state.lr)
        metrics = {"train_loss": seen, "server_lr": state.lr, "effective_steps": tau}
        return State(*model, state.lr), screened(metrics, nonfinite, sent[2], *who)

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and those of the proximal term."""

    mu: float = 0.0
    effective: Literal["coefficients", "steps"] = "coefficients"

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
    names = ("client_lr", "mu", "effective", "server_lr", "weighting", "nonfinite")
    options = {name: getattr(config, name) for name in names}
    options["momentum"] = config.client_momentum
    return fednova(task.loss, task.init, server=server, **options)
