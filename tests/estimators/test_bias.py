"""What each estimator converges to, measured on quadratics with closed forms.

The inner run is federated averaging on ``fad.data.Quadratics`` (y), theta is the upper
variable x, and a round's loss the upper loss at its new y. The truth is federated
averaging's own derivative, ``fedavg_hypergradient``, and not the bilevel one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.data import Quadratics

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]

STEPS, LR = 2, 0.5
ROUNDS, WINDOW = 6, 2


@pytest.fixture(scope="module")
def problem():
    return Quadratics.random(4, lower_size=3, upper_size=2, seed=0)


X, Y0 = np.array([0.5, -1.0]), np.zeros(3)


@fad.program
def averaging(x, y, cohort, key):
    def local(y, own):
        step = lambda y, _: (y - LR * jax.grad(own.lower, 1)(x, y), None)  # noqa: E731
        return jax.lax.scan(step, y, None, length=STEPS)[0]

    y = fad.mean(fad.map(local, fad.broadcast(y), cohort))
    return y, fad.mean(
        fad.map(lambda y, own: own.upper(x, y), fad.broadcast(y), cohort)
    )


def window_of(problem, rounds):
    own = problem.at_clients()
    return jax.tree.map(lambda *x: jnp.stack(x), *[own] * rounds), jnp.zeros(rounds)


def run(estimator, problem, key=None):
    """Return the estimate of the last window, at a fixed x."""
    window, carry = window_of(problem, WINDOW), estimator.init(X, Y0, key)
    estimate = jax.jit(estimator.estimate)
    for _ in range(ROUNDS // WINDOW - 1):
        carry = estimate(X, carry, *window).carry
    return estimate(X, carry, *window)


def closed_form(problem, last):
    """Return the mean over the last window; ``last(t)`` rounds differentiated at t."""
    found = [
        problem.fedavg_hypergradient(X, Y0, rounds=t, steps=STEPS, lr=LR, last=last(t))
        for t in range(ROUNDS - WINDOW + 1, ROUNDS + 1)
    ]
    return np.mean(found, axis=0)


def whole(t):
    return t


def truncated(t):
    return t - (ROUNDS - WINDOW)


def test_forward_is_the_derivative_of_the_whole_run(problem):
    estimator = fad.estimators.forward(averaging)
    found = run(estimator, problem)
    y = problem.fedavg(X, Y0, rounds=ROUNDS, steps=STEPS, lr=LR)
    np.testing.assert_allclose(found.carry.state, y, atol=1e-10)
    np.testing.assert_allclose(found.gradient, closed_form(problem, whole), atol=1e-10)
    assert estimator.bias.startswith("none")


@pytest.mark.parametrize("mode", ["forward", "reverse", "mixed"])
def test_a_window_leaves_out_what_was_before_it(problem, mode):
    estimator = fad.estimators.reverse(averaging, mode=mode)
    found = run(estimator, problem).gradient
    want = closed_form(problem, truncated)
    np.testing.assert_allclose(found, want, atol=1e-10)
    exact = closed_form(problem, whole)
    bias = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert bias > 0.1
    assert estimator.bias.startswith("truncated")


def test_memory_shortens_the_horizon(problem):
    exact = closed_form(problem, whole)
    errors = [
        np.linalg.norm(
            run(fad.estimators.forward(averaging, memory=m), problem).gradient - exact
        )
        for m in (0.0, 0.5, 0.9, 1.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10
    assert "0.5**r" in fad.estimators.forward(averaging, memory=0.5).bias


def sample(kind, problem, *, sigma, draws):
    """Return the mean of independent estimates of one pair, and its standard error."""
    estimator = kind(averaging, sigma=sigma, pairs=1)
    keys = jax.random.split(jax.random.key(0), draws)
    found = jax.jit(jax.vmap(lambda key: run(estimator, problem, key).gradient))(keys)
    return found.mean(0), found.std(0) / np.sqrt(draws)


def test_persistent_strategies_are_unbiased_where_truncated_ones_are_not(problem):
    """A quadratic's smoothed gradient is its gradient, for any sigma."""
    exact, short = closed_form(problem, whole), closed_form(problem, truncated)
    mean, error = sample(fad.estimators.pes, problem, sigma=0.1, draws=20000)
    assert (np.abs(mean - exact) < 4 * error).all()
    assert (np.abs(mean - short) > 4 * error).any()
    mean, error = sample(fad.estimators.es, problem, sigma=0.1, draws=20000)
    assert (np.abs(mean - short) < 4 * error).all()
    assert (np.abs(mean - exact) > 4 * error).any()
    assert "truncated" in fad.estimators.es(averaging, sigma=0.1, pairs=1).bias
    assert "truncated" not in fad.estimators.pes(averaging, sigma=0.1, pairs=1).bias


def test_the_value_of_particles_is_that_of_their_runs(problem):
    window = window_of(problem, 2)
    one = fad.estimators.es(averaging, sigma=0.5, pairs=3)
    plain = fad.estimators.reverse(averaging)
    found = jax.jit(one.estimate)(X, one.init(X, Y0, jax.random.key(0)), *window)
    want = jax.jit(plain.estimate)(X, plain.init(X, Y0, None), *window)
    np.testing.assert_allclose(found.value, want.value, rtol=1e-12)
    np.testing.assert_allclose(found.carry.state, want.carry.state, rtol=1e-12)


@pytest.mark.parametrize("kind", [fad.estimators.es, fad.estimators.pes])
def test_bias_names_sigma(kind):
    assert "N(0, 0.25^2)" in kind(averaging, sigma=0.25, pairs=1).bias


@functools.cache
def _scalar(kind, sigma):
    """Estimates of d/dtheta of theta's cube, one pair each, from 20,000 keys."""

    @fad.program
    def cube(theta, state, cohort, key):
        return state, fad.mean(fad.map(lambda a: a * theta**3, cohort))

    estimator = kind(cube, sigma=sigma, pairs=1)
    window, state = (fad.AtClients(jnp.ones((1, 2))), jnp.zeros(1)), jnp.zeros(())

    def one(key):
        carry = estimator.init(0.7, state, key)
        return estimator.estimate(0.7, carry, *window).gradient

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 20000))


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_what_is_estimated_is_the_gradient_of_the_smoothed_loss(sigma):
    """``E (theta + e)^3 = theta^3 + 3 theta sigma^2``."""
    found = _scalar(fad.estimators.es, sigma)
    want = 3 * 0.7**2 + 3 * sigma**2
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - want) < 4 * error
    assert error < 0.1 * want


def test_one_window_of_persistent_strategies_is_plain_strategies():
    found = [_scalar(k, 0.5) for k in (fad.estimators.es, fad.estimators.pes)]
    np.testing.assert_allclose(*found, rtol=1e-12)


@pytest.mark.parametrize("kind", [fad.estimators.es, fad.estimators.pes])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.1])
def test_sigma_below_the_spacing_of_theta(kind, dtype, sigma):
    """At 0.5 bfloat16 is spaced by 2^-8 above and 2^-9 below."""

    @fad.program
    def linear(theta, state, cohort, key):
        return state + 1, fad.mean(cohort) * theta.astype(jnp.float32)

    estimator = kind(linear, sigma=sigma, pairs=20000)
    window = fad.AtClients(jnp.ones((1, 2), jnp.float32)), jnp.zeros(1)
    theta = jnp.asarray(0.5, dtype)
    carry = estimator.init(theta, jnp.zeros(()), jax.random.key(0))
    estimate = jax.jit(estimator.estimate)
    found = estimate(theta, carry, *window)
    found = estimate(theta, found.carry, *window)
    assert found.gradient.dtype == dtype
    spacing = float(jnp.finfo(dtype).eps) / 2
    error = np.sqrt((3 + 2 * spacing / sigma) / 20000)
    assert abs(float(found.gradient) - 1) < 4 * error + spacing


def test_a_linear_loss_is_estimated_alike_with_any_sigma():
    @fad.program
    def linear(theta, state, cohort, key):
        return state, fad.mean(fad.map(lambda a: a @ theta, cohort))

    slopes = jnp.array([1.0, -2.0, 3.0])
    window = (fad.AtClients(jnp.stack([slopes, slopes])[None]), jnp.zeros(1))
    theta, found = jnp.zeros(3), []
    for sigma in (1e-3, 1.0, 1e3):
        estimator = fad.estimators.es(linear, sigma=sigma, pairs=4000)
        carry = estimator.init(theta, jnp.zeros(()), jax.random.key(0))
        found.append(jax.jit(estimator.estimate)(theta, carry, *window).gradient)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
    np.testing.assert_allclose(found[2], found[1], rtol=1e-9)
    error = np.sqrt((slopes @ slopes + slopes**2) / 4000)
    assert (np.abs(found[1] - slopes) < 4 * error).all()
