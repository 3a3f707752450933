"""Reptile: the same number of steps and the same weight for every client."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.fedavg import fedavg
from algorithms.reptile import Config, build, reptile
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import assert_close

KEY = jax.random.key(0)
CLIENTS = {"sgd": optax.sgd(0.2), "adam": optax.adam(0.1, b1=0.0)}


def by_loop(federation, params, client, steps, server_lr):
    """One round, client by client, batch after batch and from the first again."""
    deltas = []
    for x, y in federation.clients:
        starts = range(0, len(x), federation.batch)
        if not starts:
            continue
        p, state = params, client.init(params)
        for k in range(steps):
            start = starts[k % len(starts)]
            rows = slice(start, start + federation.batch)
            examples = {"x": jnp.asarray(x[rows]), "y": jnp.asarray(y[rows])}
            grads = jax.grad(lambda p, e: jnp.mean(loss(p, e)))(p, examples)
            updates, state = client.update(grads, state, p)
            p = optax.apply_updates(p, updates)
        deltas.append(jax.tree.map(jnp.subtract, p, params))
    return jax.tree.map(lambda p, *d: p + server_lr * sum(d) / len(d), params, *deltas)


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("steps", [1, 4])
def test_equals_a_loop_over_clients(x64, federation, name, steps):
    algorithm = reptile(
        loss, init_params, client=CLIENTS[name], steps=steps, server_lr=0.7
    )
    state = algorithm.init(KEY)
    want, step = state.params, jax.jit(algorithm.step)
    for t in range(2):
        state, _ = step(state, federation.cohort, jax.random.key(t))
        want = by_loop(federation, want, CLIENTS[name], steps, 0.7)
    assert_close(state.params, want, 1e-10)


def test_one_step_is_fedsgd(x64, federation):
    """A step on the uniform mean of the clients' gradients on their first batch."""
    first = federation.cohort.unsafe_gather()
    first = first._replace(
        examples=jax.tree.map(lambda x: x[:, :1], first.examples),
        mask=first.mask[:, :1],
    )
    fedsgd = fedavg(
        loss, init_params, server=optax.sgd(1.0), client=optax.sgd(0.2),
        weighting="uniform",
    )  # fmt: skip
    algorithm = reptile(loss, init_params, client=optax.sgd(0.2), steps=1)
    got, _ = jax.jit(algorithm.step)(algorithm.init(KEY), federation.cohort, KEY)
    want, _ = jax.jit(fedsgd.step)(fedsgd.init(KEY), fad.AtClients(first), KEY)
    assert_close(got.params, want.params, 1e-12)

    def mean_loss(p):
        losses = [
            jnp.mean(loss(p, {"x": jnp.asarray(x[:5]), "y": jnp.asarray(y[:5])}))
            for x, y in federation.clients
            if len(x)
        ]
        return sum(losses) / len(losses)

    start = init_params(KEY)
    gradient = jax.grad(mean_loss)(start)
    step = jax.tree.map(lambda p, g: p - 0.2 * g, start, gradient)
    assert_close(got.params, step, 1e-12)


def test_the_step_falls_to_zero(federation):
    algorithm = reptile(
        loss, init_params, client=optax.sgd(0.2), steps=2, server_lr=0.8, decay_rounds=2
    )
    state, seen, before = algorithm.init(KEY), [], None
    step = jax.jit(algorithm.step)
    for _ in range(4):
        before = state.params
        state, metrics = step(state, federation.cohort, KEY)
        seen.append(float(metrics["server_lr"]))
    np.testing.assert_allclose(seen, [0.8, 0.4, 0.0, 0.0], rtol=1e-6)
    assert_close(state.params, before, 0)


def test_learned_by_a_gradient(x64, federation):
    """What a round gives differentiates in both steps, as in plain JAX."""

    def by_fad(server_lr, client_lr):
        algorithm = reptile(
            loss, init_params, client=optax.sgd(client_lr), steps=3, server_lr=server_lr
        )
        state, _ = algorithm.step(algorithm.init(KEY), federation.cohort, KEY)
        return jnp.sum(state.params["w"] ** 2)

    def plain(server_lr, client_lr):
        client = optax.sgd(client_lr)
        params = by_loop(federation, init_params(KEY), client, 3, server_lr)
        return jnp.sum(params["w"] ** 2)

    got, want = (jax.jit(jax.grad(f, (0, 1)))(0.8, 0.2) for f in (by_fad, plain))
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_an_empty_client_changes_nothing(federation):
    algorithm = reptile(loss, init_params, client=optax.sgd(0.2), steps=2)
    state = algorithm.init(KEY)
    empty = jax.tree.map(lambda x: x[:1], federation.cohort)
    after, _ = jax.jit(algorithm.step)(state, empty, KEY)
    assert_close(after.params, state.params, 0)


def test_nan_shows(federation):
    algorithm = reptile(loss, init_params, client=optax.sgd(0.2), steps=2)
    bad = jax.tree.map(
        lambda x: x.at[3].set(jnp.nan) if x.ndim == 4 else x, federation.cohort
    )
    after, metrics = jax.jit(algorithm.step)(algorithm.init(KEY), bad, KEY)
    assert np.isnan(metrics["train_loss"])
    assert np.isnan(after.params["w"]).all()


@pytest.mark.parametrize("client", ["sgd", "adam"])
def test_builds_from_a_config(federation, client):
    task: Any = types.SimpleNamespace(loss=loss, init=init_params)
    algorithm = build(Config(client=client, client_steps=2), task)
    args = algorithm.init(KEY), federation.cohort, KEY
    cost = fad.plan(algorithm.step)(*args).cost()
    assert (cost.rounds, cost.bytes_down, cost.bytes_up) == (1, 16, 16 + 8)
    state, _ = algorithm.step(*args)
    assert np.isfinite(state.params["w"]).all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("server_lr", 0.0, "server_lr: expected > 0, got 0.0"),
        ("client_steps", 0, "client_steps: expected >= 1, got 0"),
        ("decay_rounds", 0, "decay_rounds: expected >= 1, got 0"),
    ],
)
def test_ranges(option, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{option: value})
