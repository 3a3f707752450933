"""A few rounds of local training with an aggregator, in fad and in plain JAX."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fad
from fad.aggregators import combined
from tests import rounds

CLIENTS, ROUNDS = 4, 3
CLIENT_LR: Any = 0.05


def double(theta: Any, key: jax.Array) -> Any:
    """Return theta in double precision, away from the start where much is zero."""
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        x.astype(float) + 0.3 * jax.random.normal(k, x.shape, float)
        for x, k in zip(leaves, keys, strict=True)
    )


def arguments(clients: int = CLIENTS, weights: Any = None) -> tuple[Any, Any, Any]:
    """Return params, data and weights."""
    params, _, _, data, usual = rounds.make_args(clients)
    return params, data, usual if weights is None else fad.AtClients(weights)


def training_loss(aggregator: Any) -> Any:
    """Return the loss after some rounds as a fad program of theta."""

    @fad.program
    def run(theta, params, data, weights):
        def one_round(carry, _):
            params, state = carry
            message = fad.map(
                lambda d: aggregator.client(
                    theta, state, (), rounds.local_sgd(params, CLIENT_LR, d), None
                )[0],
                data,
            )
            mean = combined(aggregator, message, weights)
            step, state = aggregator.server(theta, state, mean, params, None)
            return (jax.tree.map(jnp.add, params, step), state), None

        start = (params, aggregator.init(params))
        (params, _), _ = jax.lax.scan(one_round, start, None, length=ROUNDS)
        return fad.mean(fad.map(lambda d: rounds.loss(params, d), data))

    return run


def plain_loss(aggregator: Any) -> Any:
    """Return the same in plain JAX: vmap for clients, and sums over an axis."""

    def run(theta, params, data, weights):
        data, weights = data.unsafe_gather(), weights.unsafe_gather()
        share = weights / weights.sum()

        def one_round(carry, _):
            params, state = carry
            deltas = jax.vmap(lambda d: rounds.local_sgd(params, CLIENT_LR, d))(data)
            send = lambda d: aggregator.client(theta, state, (), d, None)[0]  # noqa: E731
            mean = jax.tree.map(
                lambda x: jnp.tensordot(share, x, 1), jax.vmap(send)(deltas)
            )
            step, state = aggregator.server(theta, state, mean, params, None)
            return (jax.tree.map(jnp.add, params, step), state), None

        start = (params, aggregator.init(params))
        (params, _), _ = jax.lax.scan(one_round, start, None, length=ROUNDS)
        return jax.vmap(lambda d: rounds.loss(params, d))(data).mean()

    return run


@functools.cache  # compiled once for all the arguments of a test
def _two_steps(aggregator: Any) -> Any:
    @jax.jit
    @fad.program
    def run(theta, updates, weights, params):
        state = aggregator.init(params)
        step = params
        for _ in range(2):
            send = functools.partial(_message, aggregator, theta, state)
            mean = combined(aggregator, fad.map(send, updates), weights)
            step, state = aggregator.server(theta, state, mean, params, None)
        return step

    return run


def one_step(aggregator: Any, theta: Any, updates: Any, weights: Any, params: Any):
    """Return the step after the same updates came twice."""
    run = _two_steps(aggregator)
    return run(theta, fad.AtClients(updates), fad.AtClients(weights), params)


def saturated(step: Any, mean: Any, params: Any, *, part: float) -> Any:
    """Shorten a step as an untrained aggregator does, at this part of the training."""
    size = lambda tree: jnp.sqrt(  # noqa: E731
        jnp.mean(jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) ** 2)
    )
    longest = 0.04 * (size(params) + 10 * size(mean))
    factor = jnp.exp(-part) / jnp.sqrt(1 + (size(step) / longest) ** 2)
    return jax.tree.map(lambda x: factor * x, step)


def _message(aggregator, theta, state, update):
    return aggregator.client(theta, state, (), update, None)[0]


def close(a: Any, b: Any, **tolerance: Any) -> None:
    """Compare two trees."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
