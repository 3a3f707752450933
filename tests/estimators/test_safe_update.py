"""A diverging inner run is found, reported, and kept out of theta."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from fad.estimators import InnerRunDiverged, es, forward, pes, reverse, safe_update

pytestmark = pytest.mark.once

PAIRS = 2


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


KINDS = {
    "forward": forward,
    "reverse": reverse,
    "levels_0": functools.partial(reverse, levels=0),
    "mixed": functools.partial(reverse, mode="mixed"),
    "es": functools.partial(es, sigma=0.01, pairs=PAIRS),
    "pes": functools.partial(pes, sigma=0.01, pairs=PAIRS),
}


@fad.program
def descend(lr, state, cohort, key):
    """Gradient descent on ``mean (w - x)^2 / 2``."""
    w, count = state
    w = w - lr * fad.mean(fad.map(lambda x: w - x, cohort))
    loss = fad.mean(fad.map(lambda x: (w - x) ** 2, cohort))
    return (w, count + 1), loss


def window(bad=None, rounds=4):
    x = np.ones((rounds, 3), np.float32)
    if bad is not None:
        x[bad, 1] = np.nan
    return fad.AtClients(jnp.asarray(x)), jnp.zeros(rounds)


def estimate(kind, *window, lr=0.5, round=descend):
    estimator = KINDS[kind](round)
    state = (jnp.zeros(()), jnp.int32(0))
    carry = estimator.init(lr, state, jax.random.key(0))
    return jax.jit(estimator.estimate)(lr, carry, *window)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bad_round_and_the_state_before_it(kind):
    found = estimate(kind, *window(bad=2))
    assert not found.finite
    assert found.bad_round == 2
    w, count = found.last_state
    assert (count == 2).all()
    tolerance = 0.05 if kind == "pes" else 1e-6
    np.testing.assert_allclose(w, jnp.full(w.shape, 0.75), atol=tolerance)
    fine = estimate(kind, *window())
    assert fine.finite
    assert fine.bad_round == -1
    assert (fine.last_state[1] == 4).all()


def test_a_state_that_overflows_is_found():
    found = estimate("forward", *window(rounds=30), lr=100.0)
    assert not found.finite
    assert 0 < found.bad_round < 30
    assert jnp.isfinite(found.last_state[0])


def test_a_state_that_was_bad_from_the_start():
    estimator = reverse(descend)
    carry = estimator.init(0.5, (jnp.float32(np.nan), jnp.int32(0)), None)
    found = jax.jit(estimator.estimate)(0.5, carry, *window())
    assert (found.bad_round, found.finite) == (0, False)


@fad.program
def kink(lr, state, cohort, key):
    """A finite round whose derivative is not: a square root at zero."""
    w, count = state
    return (w, count + 1), jnp.sqrt(lr - 0.5) + 0 * fad.mean(cohort)


ADAM = optax.adam(0.1)


def step(policy, found, lr=0.5, optimizer=ADAM, **options):
    meta = safe_update(optimizer, on_divergence=policy, **options)
    state = meta.init(jnp.float32(lr))
    new, after = jax.jit(meta.update)(found, state, jnp.float32(lr))
    unchanged = jax.tree.map(lambda a, b: bool((a == b).all()), after, state)
    return new, all(jax.tree.leaves(unchanged))


@pytest.mark.parametrize("kind", ["forward", "reverse", "es", "pes"])
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_bad_window_is_skipped(kind, policy):
    new, unchanged = step(policy, estimate(kind, *window(bad=0)))
    assert new == 0.5
    assert unchanged


def test_a_good_window_takes_the_optimizers_step():
    found = estimate("reverse", *window())
    for policy in ("skip", "raise"):
        new, unchanged = step(policy, found)
        np.testing.assert_allclose(new, 0.5 - 0.1 * jnp.sign(found.gradient), rtol=1e-5)
        assert not unchanged


def test_clip_takes_the_finite_part():
    found = estimate("reverse", *window())
    theta = {"a": jnp.ones(2), "b": jnp.ones(1), "c": jnp.ones(1)}
    gradient = {
        "a": jnp.array([np.nan, 3e30]),  # its square overflows
        "b": jnp.array([4e30]),
        "c": jnp.array([np.inf]),
    }
    found = found._replace(gradient=gradient, finite=jnp.array(False))
    meta = safe_update(optax.sgd(1.0), on_divergence="clip", max_norm=0.5)
    new, _ = jax.jit(meta.update)(found, meta.init(theta), theta)
    np.testing.assert_allclose(new["a"], [1.0, 0.7], rtol=1e-6)
    np.testing.assert_allclose(new["b"], [0.6], rtol=1e-6)
    np.testing.assert_allclose(new["c"], [1.0])


def test_clip_skips_what_has_no_finite_part():
    new, unchanged = step("clip", estimate("reverse", *window(bad=0)), max_norm=1.0)
    assert new == 0.5
    assert unchanged


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_a_norm_bounds_finite_gradients_too(size):
    found = estimate("reverse", *window())._replace(gradient=jnp.float32(size))
    new, _ = step("skip", found, optimizer=optax.sgd(1.0), max_norm=0.1)
    np.testing.assert_allclose(new, 0.5 - min(size, 0.1), rtol=1e-6)


def test_a_step_that_would_overflow_is_skipped():
    found = estimate("reverse", *window())._replace(gradient=jnp.float32(1e20))
    new, unchanged = step("skip", found)  # the square in Adam's state is infinite
    assert new == 0.5
    assert unchanged
    new, _ = step("skip", found, optimizer=optax.sgd(1e30))
    assert new == 0.5


def test_an_optimizer_may_begin_with_an_infinity_and_see_the_loss():
    found = estimate("reverse", *window())
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    new, unchanged = step("skip", found, optimizer=plateau)
    assert new != 0.5
    assert not unchanged


def test_the_report_names_the_round_and_holds_the_state():
    meta = safe_update(ADAM)
    found = meta.check(estimate("reverse", *window(bad=2)), 100)
    assert isinstance(found, InnerRunDiverged)
    assert isinstance(found, fad.RunError)
    assert found.round == 102
    assert found.state[0] == 0.75
    assert "the inner run diverged in round 102: its loss or its state" in str(found)
    assert meta.check(estimate("reverse", *window()), 100) is None


@fad.program
def cliff(lr, state, cohort, key):
    """A round that is fine at lr = 0.5, and infinite above it."""
    w, count = state
    loss = fad.mean(fad.map(lambda x: x * lr, cohort))
    return (w, count + 1), jnp.where((lr > 0.5) & (count == 2), jnp.inf, loss)


def test_a_perturbed_run_alone_that_diverged():
    found = estimate("es", *window(), round=cliff)
    assert (found.finite, found.bad_round) == (False, 2)
    assert jnp.isfinite(found.value)
    assert found.last_state[1] == found.carry.state[1] == 4
    assert step("skip", found) == (0.5, True)
    message = (
        "a run at a perturbed theta diverged in round 102: .* The run at theta is "
        "fine, may go on from its carry"
    )
    with pytest.raises(InnerRunDiverged, match=message) as caught:
        safe_update(ADAM, on_divergence="raise").check(found, 100)
    assert caught.value.round == 102
    assert caught.value.state[1] == 4
    for kind, round in (("pes", cliff), ("es", descend)):  # the inner runs themselves
        bad = estimate(kind, *window(bad=2 if kind == "es" else None), round=round)
        assert "the inner run diverged" in str(safe_update(ADAM).check(bad, 0))


def test_a_perturbed_state_alone_that_diverged_leaves_the_gradient():
    """``es`` drops the states of perturbed runs; the round is reported all the same."""

    @fad.program
    def round(lr, state, cohort, key):
        w, count = state
        w = jnp.where(lr > 0.5, jnp.inf, w)
        return (w, count + 1), fad.mean(fad.map(lambda x: x * lr, cohort))

    found = estimate("es", *window(), round=round)
    assert (found.finite, found.bad_round) == (True, 0)
    assert safe_update(ADAM).check(found, 0) is None


def test_raise_raises():
    meta = safe_update(ADAM, on_divergence="raise")
    with pytest.raises(InnerRunDiverged, match="diverged in round 102") as caught:
        meta.check(estimate("pes", *window(bad=2)), 100)
    assert caught.value.state[0].shape == (2 * PAIRS,)
    assert meta.check(estimate("pes", *window()), 100) is None


def test_a_derivative_alone_that_is_not_finite():
    found = estimate("reverse", *window(), round=kink)
    assert not found.finite
    assert found.bad_round == -1
    meta = safe_update(ADAM, on_divergence="raise")
    with pytest.raises(
        InnerRunDiverged, match="derivative of the window that starts in"
    ):
        meta.check(found, 8)
    assert step("raise", found) == (0.5, True)


def test_meta_training_goes_on_after_a_divergence():
    """Nothing but finite numbers in theta, and a step again after the restart."""
    estimator, meta = reverse(descend), safe_update(optax.sgd(0.1))
    lr, state = jnp.float32(0.5), (jnp.zeros(()), jnp.int32(0))
    carry, opt, seen = estimator.init(lr, state, None), meta.init(jnp.float32(0.5)), []
    estimate = jax.jit(estimator.estimate)
    for bad in (None, 1, None):
        found = estimate(lr, carry, *window(bad=bad))
        lr, opt = meta.update(found, opt, lr)
        carry = found.carry
        if meta.check(found, 0):
            carry = estimator.init(lr, found.last_state, None)
        seen.append(float(lr))
    assert np.isfinite(seen).all()
    assert seen[0] == seen[1]
    assert seen[2] != seen[1]
