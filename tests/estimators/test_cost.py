"""Rounds, traffic and memory of estimates: from plans, and from XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad

pytestmark = pytest.mark.once

FEATURES, HIDDEN, CLASSES = 64, 32, 10
CLIENTS, STEPS, BATCH = 10, 3, 8
MODEL = FEATURES * HIDDEN + HIDDEN * CLASSES


@pytest.fixture
def quick() -> None:
    """Let XLA optimise: memory is the compiled program's."""


def local_loss(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["in"]) @ p["out"] - y) ** 2)


@fad.program
def aggregate(theta, params, cohort, key):
    """Local SGD, and a small network per coordinate of the mean update."""

    def client(p, x, y):
        def step(q, batch):
            g = jax.grad(local_loss)(q, *batch)
            return jax.tree.map(lambda a, b: a - 0.1 * b, q, g), None

        return local_loss(p, x[0], y[0]), jax.lax.scan(step, p, (x, y))[0]

    def apply(p, new):
        update = (new - p)[..., None]
        features = jnp.concatenate([update, jnp.sign(update)], -1)
        return new + jnp.tanh(features @ theta["in"]) @ theta["out"]

    loss, new = fad.mean(fad.map(client, fad.broadcast(params), *cohort))
    return jax.tree.map(apply, params, new), loss


def arguments(rounds):
    def zeros(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    theta = {"in": zeros(2, 16), "out": zeros(16)}
    params = {"in": zeros(FEATURES, HIDDEN), "out": zeros(HIDDEN, CLASSES)}
    lead = (rounds, CLIENTS, STEPS, BATCH)
    cohorts = jax.tree.map(
        lambda *x: x[0], fad.AtClients((zeros(*lead, FEATURES), zeros(*lead, CLASSES)))
    )
    return theta, params, cohorts, zeros(rounds)


def temp_bytes(estimator, rounds, jit):
    theta, params, *window = arguments(rounds)
    carry = jax.eval_shape(lambda t, s: estimator.init(t, s, None), theta, params)
    compiled = jit(estimator.estimate).lower(theta, carry, *window).compile()
    return compiled.memory_analysis().temp_size_in_bytes


COMPILERS = {"jax.jit": jax.jit, "fad.jit": functools.partial(fad.jit, chunk=1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("rounds", [97, 100])
def test_memory_of_a_meta_gradient_hardly_grows_with_its_rounds(name, rounds):
    estimator = fad.estimators.reverse(aggregate)
    few, many = (temp_bytes(estimator, k, COMPILERS[name]) for k in (10, rounds))
    assert many <= 1.5 * few


def test_one_level_keeps_a_state_per_round_and_two_keep_few():
    one, two = (
        temp_bytes(
            fad.estimators.reverse(aggregate, levels=n), 64, COMPILERS["fad.jit"]
        )
        for n in (1, 2)
    )
    states = 4 * MODEL * (64 - (8 + 8))
    assert one - two > 0.8 * states


@fad.program
def descend(lr, w, cohort, key):
    """One round that sends w down, and one model and a loss up."""

    def client(w, x):
        return jnp.sum((w - x) ** 2), w - x

    loss, gradient = fad.mean(fad.map(client, fad.broadcast(w), cohort))
    return w - lr * gradient, loss


def cost(estimator, rounds=3, dim=5):
    theta, w = jnp.float32(0.1), jnp.zeros(dim)
    window = (fad.AtClients(jnp.ones((rounds, 2, dim))), jnp.zeros(rounds))
    carry = estimator.init(theta, w, jax.random.key(0))
    return fad.plan(estimator.estimate)(theta, carry, *window).cost()


def test_forward_sends_tangents_along_and_adds_no_round():
    found = cost(fad.estimators.forward(descend))
    assert found.rounds == 3
    assert found.client_state_bytes == 0
    assert found.bytes_down == 3 * 2 * 4 * 5
    assert found.bytes_up == 3 * 2 * 4 * (5 + 1)


def test_reverse_asks_every_cohort_again():
    """The last update and what the first round starts from move no loss by theta."""
    found = [
        cost(fad.estimators.reverse(descend, levels=n), rounds=8) for n in (0, 1, 2)
    ]
    assert [c.rounds for c in found] == [2 * 8 - 2, 2 * 8 - 1, 18]
    assert found[0].bytes_down < found[1].bytes_down < found[2].bytes_down
    assert all(c.same_cohort for c in found)


@pytest.mark.parametrize("mode", ["forward", "mixed"])
def test_small_thetas_add_no_round(mode):
    assert cost(fad.estimators.reverse(descend, mode=mode)).rounds == 3


@pytest.mark.parametrize(("kind", "runs"), [("es", 1 + 2 * 4), ("pes", 2 * 4)])
def test_particles_ride_in_the_same_rounds(kind, runs):
    found = cost(getattr(fad.estimators, kind)(descend, sigma=0.1, pairs=4))
    assert found.rounds == 3
    assert found.bytes_down == runs * 3 * 4 * 5
    assert found.bytes_up == runs * 3 * 4 * (5 + 1)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_nothing_but_sums_is_revealed(kind):
    estimator = getattr(fad.estimators, kind)(descend)
    carry = estimator.init(jnp.float32(0.1), jnp.zeros(5), None)
    window = (fad.AtClients(jnp.ones((4, 2, 5))), jnp.zeros(4))
    report = fad.check(estimator.estimate)(jnp.float32(0.1), carry, *window)
    assert "client values reach the server through fad.sum alone" in str(report)


def test_more_levels_give_the_same_bits_of_the_loss():
    values = []
    for levels in (0, 2):
        estimator = fad.estimators.reverse(descend, levels=levels)
        window = (fad.AtClients(jnp.ones((6, 2, 5))), jnp.zeros(6))
        carry = estimator.init(jnp.float32(0.1), jnp.zeros(5), None)
        values.append(jax.jit(estimator.estimate)(jnp.float32(0.1), carry, *window))
    np.testing.assert_allclose(values[0].value, values[1].value, rtol=1e-6)
    np.testing.assert_allclose(values[0].gradient, values[1].gradient, rtol=1e-5)
