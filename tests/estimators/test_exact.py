"""Estimates by derivatives equal plain JAX through the same run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_vjp

import fad
from fad.estimators._window import block_size, scan_rounds
from tests.estimators.programs import (
    assert_close,
    make_state,
    make_theta,
    make_window,
    one_round,
    plain_round,
    plain_run,
    plain_window,
    run,
)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]


@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 2)])
def test_forward_is_exact_through_the_whole_run(lengths):
    theta, state = make_theta(), make_state()
    windows = [make_window(seed, k) for seed, k in enumerate(lengths)]
    found = run(fad.estimators.forward(one_round), theta, state, windows)
    whole = functools.partial(plain_run, windows=windows)
    (value, last), want = jax.jit(jax.value_and_grad(whole, has_aux=True))(theta, state)
    assert_close(found.value, value)
    assert_close(found.carry.state, last)
    assert_close(found.gradient, want)
    assert found.finite
    assert found.bad_round == -1
    assert_close(found.last_state, found.carry.state)


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_memory_fades_the_effect_of_past_rounds(memory):
    """The gradient is the sum over rounds of their thetas' effects, faded by age."""
    theta, state = make_theta(), make_state()
    windows = [make_window(0, 2), make_window(1, 1)]
    found = run(fad.estimators.forward(one_round, memory=memory), theta, state, windows)

    cohorts, keys = jax.tree.map(lambda *x: jnp.concatenate(x), *windows)

    def last_loss(thetas, state):
        step = lambda state, inputs: plain_round(inputs[0], state, *inputs[1:])  # noqa: E731
        inputs = (thetas, cohorts.unsafe_gather(), keys)
        return jax.lax.scan(step, state, inputs)[1][-1]

    thetas = jax.tree.map(lambda x: jnp.stack([x] * 3), theta)
    parts = jax.jit(jax.grad(last_loss))(thetas, state)
    age = jnp.array([memory**2, memory, 1.0])
    want = jax.tree.map(lambda g: jnp.tensordot(age, g, 1), parts)
    assert_close(found.gradient, want)


@pytest.mark.parametrize(
    ("mode", "levels", "rounds"),
    [
        ("reverse", 0, 3),
        ("reverse", 1, 3),
        ("reverse", 2, 1),
        ("reverse", 2, 6),
        ("reverse", 2, 7),
        ("reverse", 3, 8),
        ("forward", 2, 3),
        ("mixed", 2, 1),
        ("mixed", 2, 3),
    ],
)
def test_a_window_is_exact_and_truncated_at_its_start(mode, levels, rounds):
    theta, state = make_theta(), make_state()
    windows = [make_window(0, rounds), make_window(1, rounds)]
    estimator = fad.estimators.reverse(one_round, mode=mode, levels=levels)
    found = run(estimator, theta, state, windows)
    _, middle = plain_window(theta, state, *windows[0])
    exact = jax.jit(jax.value_and_grad(plain_window, has_aux=True))
    (value, last), want = exact(theta, middle, *windows[1])
    assert_close(found.value, value)
    assert_close(found.carry.state, last)
    assert_close(found.gradient, want)
    assert found.finite
    assert_close(found.last_state, last)


@pytest.mark.parametrize(
    "estimator", [fad.estimators.forward(one_round), fad.estimators.reverse(one_round)]
)
def test_the_gradient_is_that_of_finite_differences(estimator):
    theta, state, window = make_theta(), make_state(), make_window(0, 3)
    estimate = jax.jit(estimator.estimate)

    def value(theta):
        return estimate(theta, estimator.init(theta, state, None), *window).value

    def with_pull(f, theta):
        found = estimate(theta, estimator.init(theta, state, None), *window)
        return f(theta), lambda ct: (jax.tree.map(lambda g: ct * g, found.gradient),)

    check_vjp(value, functools.partial(with_pull, value), (theta,), eps=1e-5)


@pytest.mark.parametrize(
    "estimator", [fad.estimators.forward(one_round), fad.estimators.reverse(one_round)]
)
def test_compiled_in_chunks_of_clients_it_is_the_same(estimator):
    theta, state, window = make_theta(), make_state(), make_window(0, 5)
    want = run(estimator, theta, state, [window])
    chunked = functools.partial(fad.jit, chunk=1)
    assert_close(run(estimator, theta, state, [window], jit=chunked), want)


def test_several_inner_runs_side_by_side():
    theta, estimator = make_theta(), fad.estimators.reverse(one_round, levels=1)
    windows = [make_window(seed, 2) for seed in range(3)]
    carry = estimator.init(theta, make_state(), None)
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    batched = jax.jit(jax.vmap(estimator.estimate, (None, 0, 0, 0)))
    found = batched(theta, stack([carry] * 3), *stack(windows))
    estimate = jax.jit(estimator.estimate)
    want = stack([estimate(theta, carry, *window) for window in windows])
    assert_close(found, want)


def test_one_client():
    theta = make_theta()
    cohorts, keys = make_window(0, 2)
    alone = fad.AtClients(jax.tree.map(lambda a: a[:, :1], cohorts.unsafe_gather()))
    want = jax.grad(plain_window, has_aux=True)(theta, make_state(), alone, keys)[0]
    for kind in (fad.estimators.forward, fad.estimators.reverse):
        found = run(kind(one_round), theta, make_state(), [(alone, keys)])
        assert_close(found.gradient, want)


def test_theta_and_state_keep_their_dtypes():
    @fad.program
    def step(theta, state, cohort, key):
        move = theta["a"].astype(jnp.float32) * theta["b"]
        state = {"x": state["x"] + move * fad.mean(cohort), "n": state["n"] + 1}
        return state, state["x"] ** 2

    theta = {"a": jnp.bfloat16(0.5), "b": jnp.float32(2.0)}
    state = {"x": jnp.float32(1.0), "n": jnp.uint8(0)}
    window = (fad.AtClients(jnp.ones((2, 3), jnp.float32)), jnp.zeros(2))
    kinds = (
        fad.estimators.forward(step),
        fad.estimators.reverse(step),
        fad.estimators.es(step, sigma=0.1, pairs=2),
        fad.estimators.pes(step, sigma=0.1, pairs=2),
    )
    for estimator in kinds:
        found = run(estimator, theta, state, [window] * 2, jax.random.key(0))
        dtypes = jax.tree.map(lambda x: x.dtype, (found.gradient, found.carry.state))
        assert dtypes == jax.tree.map(lambda x: x.dtype, (theta, state))
        assert found.value.dtype == jnp.float32


def test_python_numbers_are_taken_as_arrays():
    @fad.program
    def step(theta, state, cohort, key):
        return state - theta * (state - fad.mean(cohort)), state**2

    window = (fad.AtClients(jnp.ones((3, 2))), jnp.zeros(3))
    found = run(fad.estimators.forward(step), 0.5, 2.0, [window])
    np.testing.assert_allclose(found.gradient, -(2 * 1.5 + 2 * 1.25 * 1.0) / 3)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 12, 23])
def test_nested_scans_visit_every_round_in_order(length, levels):
    def step(carry, x):
        return 3 * carry + x, (carry, x)

    xs = jnp.arange(1.0, length + 1)
    found = scan_rounds(step, jnp.zeros(()), xs, levels=levels)
    assert_close(found, jax.lax.scan(step, jnp.zeros(()), xs))


def test_blocks_divide_the_window_where_a_divisor_is_near():
    assert [block_size(k, 2) for k in (1, 3, 4, 10, 12, 97, 100)] == [
        1,
        1,
        2,
        2,
        3,
        10,
        10,
    ]
    assert block_size(100, 3) in (20, 25)
    assert block_size(100, 1) == 1
