"""A round with a state of several kinds, the same in plain JAX, and windows of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fad

CLIENTS, ROWS, DIM = 4, 3, 3
COUNTS = np.array([3.0, 0.0, 1.0, 7.0])  # unequal clients, one of them empty


class State(NamedTuple):
    """The inner state: real leaves, a count and a key."""

    w: Any
    momentum: Any
    count: Any
    key: Any


def make_theta():
    return {"log_lr": jnp.log(jnp.asarray(0.3)), "mix": jnp.asarray([0.9, 0.4])}


def make_state():
    w = 0.1 * jnp.arange(1.0, DIM + 1)
    return State(w, jnp.zeros(DIM), jnp.int32(0), jax.random.key(3))


def make_window(seed: int, rounds: int):
    """Return cohorts ``[rounds, n, *]`` and keys ``[rounds]``."""
    x = np.random.default_rng(seed).normal(size=(rounds, CLIENTS, ROWS, DIM))
    counts = np.broadcast_to(COUNTS, (rounds, CLIENTS))
    cohorts = fad.AtClients((jnp.asarray(x), jnp.asarray(counts)))
    return cohorts, jax.random.split(jax.random.key(seed), rounds)


def local_loss(w, x):
    return jnp.mean((jnp.tanh(x @ w) - 0.3) ** 2)


def client_work(w, x):
    return jnp.stack([local_loss(w, x)]), -jax.grad(local_loss)(w, x)


def server_work(theta, state, update, key):
    """Go on with an update: momentum, a step, and noise from two keys."""
    mix = jnp.tanh(theta["mix"])
    momentum = mix[0] * state.momentum + mix[1] * update
    own, used = jax.random.split(state.key)
    noise = jax.random.normal(used, (DIM,)) + jax.random.normal(key, (DIM,))
    w = state.w + jnp.exp(theta["log_lr"]) * momentum + 0.01 * noise
    return State(w, momentum, state.count + 1, own)


@fad.program
def one_round(theta, state, cohort, key):
    x, counts = cohort
    work = fad.map(client_work, fad.broadcast(state.w), x)
    _, update = fad.weighted_mean(work, counts)
    state = server_work(theta, state, update, key)
    after = fad.map(lambda w, x: local_loss(w, x), fad.broadcast(state.w), x)
    return state, fad.weighted_mean(after, counts)


def plain_round(theta, state, cohort, key):
    x, counts = cohort
    share = counts / counts.sum()
    _, updates = jax.vmap(client_work, (None, 0))(state.w, x)
    state = server_work(theta, state, share @ updates, key)
    return state, share @ jax.vmap(local_loss, (None, 0))(state.w, x)


def plain_window(theta, state, cohorts, keys):
    """Return the mean loss and the last state."""
    step = lambda state, inputs: plain_round(theta, state, *inputs)  # noqa: E731
    state, losses = jax.lax.scan(step, state, (cohorts.unsafe_gather(), keys))
    return losses.mean(), state


def plain_run(theta, state, windows):
    """Return the mean loss of the last window and the last state."""
    for window in windows[:-1]:
        _, state = plain_window(theta, state, *window)
    return plain_window(theta, state, *windows[-1])


def run(estimator, theta, state, windows, key=None, *, jit=jax.jit):
    """Return the estimate of the last window."""
    carry = estimator.init(theta, state, key)
    estimate = jit(estimator.estimate)
    for window in windows[:-1]:
        carry = estimate(theta, carry, *window).carry
    return estimate(theta, carry, *windows[-1])


def assert_close(found, want, *, tol=1e-10):
    """Compare trees of arrays, keys included."""
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)
