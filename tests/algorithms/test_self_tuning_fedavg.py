"""The learned server step: its hypergradient is exact, and adds no round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.self_tuning_fedavg import Config, self_tuning_fedavg
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import python_round

STILL = optax.sgd(0.0)  # a meta-optimizer that leaves the step where it is
CLIENT = optax.sgd(0.2)
SERVERS = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.9),
    "adam": optax.adam(1.0, eps=1e-3),
}


def build(server, memory, meta=STILL, server_lr=0.5):
    return self_tuning_fedavg(
        loss,
        init_params,
        server=server,
        client=CLIENT,
        meta=meta,
        server_lr=server_lr,
        memory=memory,
    )


def pooled_loss(params, federation):
    x = jnp.concatenate([jnp.asarray(x) for x, _ in federation.clients])
    y = jnp.concatenate([jnp.asarray(y) for _, y in federation.clients])
    return jnp.mean(loss(params, {"x": x, "y": y}))


def plain_run(log_lr, rounds, server, federation, lr_of=lambda t, lr: lr):
    """The pooled loss after some rounds, in plain JAX without fad."""
    params = init_params(jax.random.key(0))
    memory = server.init(params)
    for t in range(rounds):
        delta = python_round(federation, params, client=CLIENT)
        gradient = jax.tree.map(lambda d: -d, delta)
        direction, memory = server.update(gradient, memory, params)
        lr = jnp.exp(lr_of(t, log_lr))
        params = jax.tree.map(lambda p, d, lr=lr: p + lr * d, params, direction)
    return pooled_loss(params, federation)


def hypergradients(algorithm, federation, rounds):
    state, found = algorithm.init(jax.random.key(0)), []
    step = jax.jit(algorithm.step)
    for t in range(rounds):
        state, metrics = step(state, federation.cohort, jax.random.key(t))
        found.append(metrics["hypergradient"])
    return np.array(found), state


@pytest.mark.parametrize("name", SERVERS)
def test_full_memory_is_the_gradient_of_the_whole_run(x64, federation, name):
    server = SERVERS[name]
    found, _ = hypergradients(build(server, 1.0), federation, 4)
    log_lr = jnp.log(0.5)
    for rounds in (0, 1, 3):
        want = jax.grad(plain_run)(log_lr, rounds, server, federation)
        np.testing.assert_allclose(found[rounds], want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", SERVERS)
def test_no_memory_is_the_last_step_alone(x64, federation, name):
    server = SERVERS[name]
    found, _ = hypergradients(build(server, 0.0), federation, 3)

    def last_only(t, log_lr):
        return log_lr if t == 1 else jax.lax.stop_gradient(log_lr)

    want = jax.grad(plain_run)(jnp.log(0.5), 2, server, federation, last_only)
    np.testing.assert_allclose(found[2], want, rtol=1e-6)


def test_memory_fades_the_past(x64, federation):
    """The hypergradient is the sum of each step's, faded by the rounds since."""
    found, _ = hypergradients(build(SERVERS["sgd"], 0.7), federation, 4)
    want = 0.0
    for past in range(3):

        def one(t, log_lr, past=past):
            return log_lr if t == past else jax.lax.stop_gradient(log_lr)

        effect = jax.grad(plain_run)(jnp.log(0.5), 3, SERVERS["sgd"], federation, one)
        want += 0.7 ** (2 - past) * effect
    np.testing.assert_allclose(found[3], want, rtol=1e-6)


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_no_further_round(federation, memory):
    algorithm = build(SERVERS["sgd"], memory)
    state = algorithm.init(jax.random.key(0))
    cost = fad.plan(algorithm.step)(state, federation.cohort, jax.random.key(0)).cost()
    model = 4 * 4  # three weights and a bias in float32
    assert cost.rounds == 1
    assert cost.client_state_bytes == 0
    assert cost.bytes_down == 2 * model
    # The update, the loss, their weights, and the loss's tangent; with memory the
    # update's tangent too.
    assert cost.bytes_up == model + (model if memory else 0) + 4 * 3


def test_the_step_moves_towards_a_better_one(federation):
    adam = optax.adam(0.2, b1=0.5, b2=0.9)
    learned = build(SERVERS["sgd"], 0.9, adam, server_lr=0.05)
    fixed = build(SERVERS["sgd"], 0.9, server_lr=0.05)
    _, state = hypergradients(learned, federation, 8)
    _, still = hypergradients(fixed, federation, 8)
    assert state.log_lr > still.log_lr
    assert pooled_loss(state.params, federation) < pooled_loss(still.params, federation)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("memory", 1.0, r"memory: expected in \[0, 1\), got 1.0"),
        ("meta_lr", -0.1, "meta_lr: expected >= 0, got -0.1"),
        ("server_lr", 0.0, "server_lr: expected > 0, got 0.0"),
    ],
)
def test_ranges(option, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{option: value})
