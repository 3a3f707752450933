"""A realistic training, under fad and in plain JAX.

Heterogeneous clients, local SGD steps in a scan, a weighted mean, server momentum, and
a loss after some rounds, differentiable in all of its arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fad
from tests.subjects import gather

CLIENTS, ROUNDS, STEPS, ROWS, FEATURES = 4, 2, 3, 5, 3
ARGUMENTS = ("params", "server_lr", "client_lr", "data", "weights")
ALL = tuple(range(len(ARGUMENTS)))


def make_args(clients: int = CLIENTS) -> tuple[Any, ...]:
    """Return arguments in the default precision, ``ARGUMENTS`` in their order."""
    random = np.random.default_rng(0)
    x = random.normal(size=(clients, ROWS, FEATURES)) * np.linspace(
        0.5, 2.0, clients
    ).reshape(-1, 1, 1)
    truth = random.normal(size=(clients, FEATURES))
    y = np.tanh(np.einsum("nrf,nf->nr", x, truth))
    params = {
        "w": jnp.asarray(random.normal(size=FEATURES)),
        "b": jnp.asarray(np.asarray(0.1)),
    }
    data = fad.AtClients({"x": jnp.asarray(x), "y": jnp.asarray(y)})
    weights = fad.AtClients(jnp.asarray(1.0 + np.arange(clients)))
    rates = (jnp.asarray(np.asarray(v)) for v in (0.7, 0.05))  # no weak types
    return params, *rates, data, weights


def loss(params: Any, data: Any) -> jax.Array:
    """Return one client's loss."""
    scores = jnp.tanh(data["x"] @ params["w"] + params["b"])
    return jnp.mean((scores - data["y"]) ** 2)


def local_sgd(params: Any, client_lr: jax.Array, data: Any) -> Any:
    """Return one client's change of the params."""

    def step(p, _):
        grads = jax.grad(loss)(p, data)
        return jax.tree.map(lambda a, g: a - client_lr * g, p, grads), None

    end, _ = jax.lax.scan(step, params, None, length=STEPS)
    return jax.tree.map(jnp.subtract, end, params)


def _server_step(params, velocity, delta, server_lr):
    velocity = jax.tree.map(lambda v, d: 0.9 * v + d, velocity, delta)
    return jax.tree.map(lambda p, v: p + server_lr * v, params, velocity), velocity


@fad.program
def fl_round(params, velocity, server_lr, client_lr, data, weights, remat=False):
    """Run one round; ``client_lr`` reaches the clients by closure."""
    delta = fad.map(
        lambda p, d: local_sgd(p, client_lr, d),
        fad.broadcast(params),
        data,
        remat=remat,
    )
    return _server_step(params, velocity, fad.weighted_mean(delta, weights), server_lr)


@fad.program
def mean_loss(params, data):
    """Return the clients' mean loss."""
    return fad.mean(fad.map(loss, fad.broadcast(params), data))


def train(params, server_lr, client_lr, data, weights, remat=False, rounds=ROUNDS):
    """Return the clients' mean loss after some rounds."""

    def body(carry, _):
        args = (*carry, server_lr, client_lr, data, weights)
        return fl_round(*args, remat=remat), None

    start = params, jax.tree.map(jnp.zeros_like, params)
    (params, _), _ = jax.lax.scan(body, start, None, length=rounds)
    return mean_loss(params, data)


def one_round(params, server_lr, client_lr, data, weights):
    """Return the sum of squares of the params after one round."""
    velocity = jax.tree.map(jnp.zeros_like, params)
    new, _ = fl_round(params, velocity, server_lr, client_lr, data, weights)
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda p: jnp.sum(p**2), new))


def plain_train(params, server_lr, client_lr, data, weights):
    """Do the same as ``train`` without fad."""
    data, weights = gather((data, weights))

    def body(carry, _):
        params, velocity = carry
        delta = jax.vmap(local_sgd, (None, None, 0))(params, client_lr, data)
        delta = jax.tree.map(
            lambda d: jnp.tensordot(weights, d, 1) / weights.sum(), delta
        )
        return _server_step(params, velocity, delta, server_lr), None

    start = params, jax.tree.map(jnp.zeros_like, params)
    (params, _), _ = jax.lax.scan(body, start, None, length=ROUNDS)
    return jax.vmap(loss, (None, 0))(params, data).mean()
