"""Bad input is refused with the call, the argument's path and a fix."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import fad
from fad import FadError
from fad.estimators import es, forward, pes, reverse, safe_update

pytestmark = pytest.mark.once


@fad.program
def good(theta, state, cohort, key):
    return state + theta * fad.mean(cohort), state**2


KINDS = {
    "forward": forward,
    "reverse": reverse,
    "es": functools.partial(es, sigma=0.1, pairs=1),
    "pes": functools.partial(pes, sigma=0.1, pairs=1),
}
WINDOW = (fad.AtClients(jnp.ones((2, 3))), jnp.zeros(2))


def call(kind, round=good, theta: Any = 0.5, state=0.0, window=WINDOW):
    estimator = KINDS[kind](round)
    carry = estimator.init(theta, state, jax.random.key(0))
    return estimator.estimate(theta, carry, *window)


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_theta_that_is_no_real_number(kind):
    message = rf"fad.estimators.{kind}: theta\['n'\] is int32\[2\]; expected real"
    with pytest.raises(FadError, match=message):
        call(kind, theta={"lr": 0.1, "n": jnp.arange(2)})
    with pytest.raises(FadError, match=r"theta is bool True; expected real"):
        call(kind, theta=True)
    with pytest.raises(FadError, match="theta has no arrays"):
        call(kind, theta={})


@every_kind
@pytest.mark.parametrize("lengths", [(3, 2), (0, 0)])
def test_windows_whose_lengths_differ(kind, lengths):
    k, m = lengths
    window = {"x": jnp.ones((k, 3))}
    message = rf"window of k >= 1.*\n  cohorts\['x'\]: float32\[{k},3\]\n.*\[{m}\]"
    with pytest.raises(FadError, match=message):
        call(kind, window=(window, jnp.zeros(m)))


def test_keys_that_are_no_stack():
    with pytest.raises(FadError, match=r"keys: key<fry>\[\]\nStack one cohort and one"):
        call("reverse", window=(WINDOW[0], jax.random.key(0)))


@every_kind
@pytest.mark.parametrize(
    ("round", "message"),
    [
        (
            lambda t, s, c, k: (s, jnp.ones(3) * t),
            r"the loss float32\[3\]; expected one",
        ),
        (
            lambda t, s, c, k: (s, jnp.int32(1)),
            r"the loss int32\[\]; expected one real",
        ),
        (lambda t, s, c, k: (s, {"loss": t}), r"the loss dict; expected one real"),
        (lambda t, s, c, k: s + t, r"returned float32\[\]; expected a pair"),
        (lambda t, s, c, k: ((s, s), t), "must keep the structure of its state"),
        (
            lambda t, s, c, k: (jnp.stack([s, s]), t),
            r"state was float32\[\] and became float32\[2\]. Cast",
        ),
    ],
)
def test_a_round_that_returns_something_else(kind, round, message):
    with pytest.raises(FadError, match=message):
        call(kind, fad.program(round))


@pytest.mark.parametrize("memory", [-0.1, 1.5, float("nan"), "1"])
def test_memory_outside_its_range(memory):
    with pytest.raises(
        FadError, match=r"forward\(memory=...\): expected memory in \[0, 1\]"
    ):
        forward(good, memory=memory)


@pytest.mark.parametrize("kind", [es, pes])
def test_particles_out_of_range(kind):
    name = f"fad.estimators.{kind.__name__}"
    for sigma in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(FadError, match=f"{name}: expected sigma > 0 and finite"):
            kind(good, sigma=sigma, pairs=1)
    for pairs in (0, 1.5, True):
        with pytest.raises(FadError, match=f"{name}: expected pairs to be an int >= 1"):
            kind(good, sigma=1.0, pairs=pairs)


@pytest.mark.parametrize("kind", ["es", "pes"])
@pytest.mark.parametrize(
    "key", [None, jnp.zeros(()), jax.random.split(jax.random.key(0))]
)
def test_particles_need_a_key(kind, key):
    with pytest.raises(
        FadError, match=r"init\(theta, state, key\) got key=.*one random key"
    ):
        KINDS[kind](good).init(0.5, 0.0, key)


def test_modes_and_levels():
    with pytest.raises(
        FadError, match=r"unknown mode 'revers'. Did you mean 'reverse'"
    ):
        reverse(good, mode="revers")  # type: ignore[arg-type]
    with pytest.raises(FadError, match="expected levels to be an int >= 0, got -1"):
        reverse(good, levels=-1)


def test_policies():
    sgd = optax.sgd(1.0)
    with pytest.raises(FadError, match=r"on_divergence 'skp'. Did you mean 'skip'"):
        safe_update(sgd, on_divergence="skp")  # type: ignore[arg-type]
    with pytest.raises(FadError, match=r'on_divergence="clip"\): expected max_norm'):
        safe_update(sgd, on_divergence="clip")
    with pytest.raises(FadError, match="expected max_norm > 0 and finite, got 0"):
        safe_update(sgd, max_norm=0)
