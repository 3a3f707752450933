"""What holds of the learned aggregators whatever theta is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from fad import ConfigError, aggregators
from fad.aggregators import learned, learned_optimizer
from fad.aggregators._features import size
from fad.aggregators._vector import ravel
from tests.aggregators.runs import close, double, one_step, saturated

pytestmark = pytest.mark.once

CLIENTS = 5
BOTH = pytest.mark.parametrize("make", [learned, learned_optimizer])


@pytest.fixture
def updates(x64):
    rng = np.random.default_rng(0)
    shapes = {"b": (3,), "w": (4, 3)}
    made = {k: rng.normal(size=(CLIENTS, *s)) for k, s in shapes.items()}
    params = {k: rng.normal(size=s) for k, s in shapes.items()}
    weights = jnp.asarray(rng.uniform(1, 2, CLIENTS))
    as_arrays = jax.tree.map(jnp.asarray, (made, params))
    return *as_arrays, weights


def _made(make, getkey):
    aggregator = make(rounds=10, hidden=(4,))
    return aggregator, double(aggregator.init_theta(getkey()), getkey())


@BOTH
def test_starts_as_fedavg_with_momentum_and_a_falling_step(make, updates, getkey):
    deltas, params, weights = updates
    aggregator = make(rounds=10)
    theta = aggregator.init_theta(getkey())
    theta = jax.tree.map(lambda x: x.astype(float), theta)
    share = weights / weights.sum()
    mean = jax.tree.map(lambda d: jnp.tensordot(share, d, 1), deltas)
    # The same updates twice: an unbiased momentum is their mean.
    want = saturated(mean, mean, params, part=0.1)
    close(one_step(aggregator, theta, deltas, weights, params), want, rtol=1e-6)


@BOTH
def test_a_step_is_never_longer_than_a_share_of_the_model(make, updates, getkey):
    deltas, params, weights = updates
    aggregator, theta = _made(make, getkey)
    theta = {**theta, "log_step": theta["log_step"] + 20.0, "fall": 0.0}
    step = one_step(aggregator, theta, deltas, weights, params)
    share = weights / weights.sum()
    mean = jax.tree.map(lambda d: jnp.tensordot(share, d, 1), deltas)
    want = jnp.exp(theta["log_longest"]) * (
        size(ravel(params)) + 10 * size(ravel(mean))
    )
    assert float(size(ravel(step))) == pytest.approx(float(want), rel=1e-6)


@BOTH
def test_clients_have_no_order(make, updates, getkey):
    deltas, params, weights = updates
    aggregator, theta = _made(make, getkey)
    order = np.random.default_rng(1).permutation(CLIENTS)
    turned = jax.tree.map(lambda d: d[order], deltas)
    a = one_step(aggregator, theta, deltas, weights, params)
    b = one_step(aggregator, theta, turned, weights[order], params)
    close(a, b, rtol=1e-10)


@BOTH
def test_coordinates_have_no_order(make, updates, getkey):
    deltas, params, weights = updates
    aggregator, theta = _made(make, getkey)
    order = np.random.default_rng(1).permutation(4)

    def turn(tree, axis):
        return {**tree, "w": jnp.take(tree["w"], order, axis)}

    a = one_step(aggregator, theta, deltas, weights, params)
    b = one_step(aggregator, theta, turn(deltas, 1), weights, turn(params, 0))
    close(turn(a, 0), b, rtol=1e-10)


@BOTH
def test_has_no_scale(make, updates, getkey):
    deltas, params, weights = updates
    aggregator, theta = _made(make, getkey)
    a = one_step(aggregator, theta, deltas, weights, params)
    for scale in (1e-4, 1e3):
        large = jax.tree.map(lambda x, s=scale: s * x, (deltas, params))
        b = one_step(aggregator, theta, large[0], weights, large[1])
        close(jax.tree.map(lambda x, s=scale: s * x, a), b, rtol=1e-8)


@BOTH
def test_one_theta_serves_any_model_in_its_own_dtype(make, getkey):
    aggregator = make(rounds=10)
    theta = aggregator.init_theta(getkey())
    for dtype in (jnp.float32, jnp.bfloat16):
        params = {"a": jnp.zeros((2, 3, 4), dtype), "b": jnp.zeros((), dtype)}
        ones = jax.tree.map(lambda p: jnp.ones((CLIENTS, *p.shape), p.dtype), params)
        step = one_step(aggregator, theta, ones, jnp.ones(CLIENTS), params)
        assert jax.tree.map(jnp.shape, step) == jax.tree.map(jnp.shape, params)
        assert {x.dtype for x in jax.tree.leaves(step)} == {jnp.dtype(dtype)}
        # A model at zero starts slowly: the step saturates at 0.4 mean updates.
        wide = jax.tree.map(lambda x: x.astype(float), step)
        close(wide, {"a": 0.336, "b": 0.336}, rtol=0.02)


@BOTH
def test_coordinates_that_never_move_stay_finite(make, getkey):
    aggregator = make(rounds=10)
    theta = aggregator.init_theta(getkey())
    updates = {"w": jnp.zeros((CLIENTS, 3)).at[:, 0].set(1e-3)}

    def size(theta):
        params = {"w": jnp.zeros(3)}
        step = one_step(aggregator, theta, updates, jnp.ones(CLIENTS), params)
        return (step["w"] ** 2).sum()

    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(jax.grad(size)(theta)))


def test_an_empty_client_with_nan_counts_for_nothing(updates, getkey):
    deltas, params, weights = updates
    aggregator, theta = _made(learned, getkey)
    spoilt = jax.tree.map(lambda d: d.at[1].set(jnp.nan), deltas)
    without = jax.tree.map(lambda d: jnp.delete(d, 1, axis=0), deltas)
    a = one_step(aggregator, theta, spoilt, weights.at[1].set(0), params)
    b = one_step(aggregator, theta, without, jnp.delete(weights, 1), params)
    close(a, b, rtol=1e-10)


def test_what_is_sent():
    for make, times in ((learned, 3), (learned_optimizer, 1)):
        update = jnp.array([2.0, -3.0])
        message, _ = make(rounds=2).client(None, None, (), update, None)
        assert len(jax.tree.leaves(message)) == times
    message, _ = learned(rounds=2).client(None, None, (), update, None)
    assert message["sign"].tolist() == [1.0, -1.0]


def test_client_may_use_theta_and_state_which_are_then_broadcast(getkey):
    """Clipping at the clients to a learned norm."""

    def client(theta, state, memory, update, key):
        del state, key
        norm = jnp.linalg.norm(update)
        return update / jnp.maximum(1.0, norm / jnp.exp(theta)), memory

    clip = aggregators.Aggregator(init_theta=lambda key: jnp.zeros(()), client=client)

    @fad.program
    def length(theta, updates):
        message = fad.map(lambda d: clip.client(theta, (), (), d, None)[0], updates)
        mean = aggregators.combined(
            clip, message, fad.map(lambda d: jnp.ones(()), updates)
        )
        return jnp.linalg.norm(clip.server(theta, (), mean, None, None)[0])

    updates = fad.AtClients(jnp.array([[3.0, 4.0], [6.0, 8.0]]))
    assert float(length(0.0, updates)) == pytest.approx(1.0)
    assert float(jax.grad(length)(0.0, updates)) == pytest.approx(1.0)
    assert fad.plan(length)(0.0, updates).cost().bytes_down == 4


def test_from_optax_is_fedadam(getkey):
    adam = aggregators.from_optax(optax.adam(0.1))
    params, mean = jnp.zeros(3), jnp.array([1.0, -2.0, 0.0])
    with jax.numpy_dtype_promotion("standard"):
        step, _ = adam.server(
            adam.init_theta(getkey()), adam.init(params), mean, params, None
        )
    np.testing.assert_allclose(step, [0.1, -0.1, 0.0], rtol=1e-4)


@BOTH
@pytest.mark.parametrize("rounds", [0, 2.5, True])
def test_rounds_must_be_positive(make, rounds):
    with pytest.raises(ConfigError, match=rf"{make.__name__}\(rounds=\.\.\.\): expec"):
        make(rounds=rounds)
