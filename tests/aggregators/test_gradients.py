"""Gradients by theta through rounds: plain JAX, every mode, finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import fad
from fad import aggregators
from fad.aggregators import learned, learned_optimizer
from tests.aggregators.runs import (
    arguments,
    close,
    double,
    plain_loss,
    training_loss,
)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]

MAKERS = {
    "learned": lambda: learned(rounds=5, hidden=(2,)),
    "learned_optimizer": lambda: learned_optimizer(rounds=5, hidden=(2,)),
    "sgd": lambda: aggregators.from_optax(optax.sgd(1.0, momentum=0.9)),
}


_aggregator = functools.cache(lambda name: MAKERS[name]())


def _subject(name, getkey):
    aggregator = _aggregator(name)
    return aggregator, double(aggregator.init_theta(getkey()), getkey())


@functools.cache
def _gradient(name):
    return jax.jit(jax.grad(training_loss(_aggregator(name))))


@functools.cache
def _plain_gradient(name):
    return jax.jit(jax.grad(plain_loss(_aggregator(name))))


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("learned", "jax"),
        ("learned", "forward"),
        ("learned_optimizer", "reverse"),
        ("sgd", "jax"),
        ("sgd", "forward"),
        ("sgd", "reverse"),
        ("sgd", "jit"),
        pytest.param("learned", "jit", marks=pytest.mark.slow),
    ],
)
def test_equals_plain_jax(name, mode, getkey):
    aggregator, theta = _subject(name, getkey)
    run, args = training_loss(aggregator), arguments()
    gradient = {
        "jax": lambda: _gradient(name),
        "reverse": lambda: jax.jit(fad.grad(run, mode="reverse")),
        "forward": lambda: jax.jit(fad.grad(run, mode="forward")),
        "jit": lambda: fad.jit(jax.grad(run), chunk=1),
    }[mode]()
    expected = _plain_gradient(name)(theta, *args)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected)) > 1e-6
    close(gradient(theta, *args), expected, rtol=1e-10, atol=1e-13)


def test_finite_differences(getkey):
    aggregator, theta = _subject("learned", getkey)
    run, args = training_loss(aggregator), arguments()
    check_grads(jax.jit(lambda t: run(t, *args)), (theta,), order=1, modes=["rev"])


def test_closed_form(getkey):
    """One client, one parameter: the step is theta's exponential times the mean."""
    fedavg = aggregators.from_optax(optax.sgd(1.0))
    theta = jnp.asarray(0.3)
    mean = jnp.asarray(np.array([2.0, -1.0]))

    def step(theta):
        return fedavg.server(theta, fedavg.init(mean), mean, mean, None)[0].sum()

    assert float(jax.grad(step)(theta)) == pytest.approx(np.exp(0.3), rel=1e-12)


@pytest.mark.parametrize(
    ("clients", "weights"),
    [(1, np.array([2.0])), (3, np.array([0.0, 1.0, 0.0])), (3, np.zeros(3))],
    ids=["one client", "empty clients", "nobody"],
)
@pytest.mark.parametrize("name", ["learned", "sgd"])
def test_hard_cohorts_have_finite_gradients(name, clients, weights, getkey):
    _, theta = _subject(name, getkey)
    args = arguments(clients, jnp.asarray(weights))
    gradient = _gradient(name)(theta, *args)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    if not weights.any():
        close(gradient, jax.tree.map(jnp.zeros_like, theta), atol=0)
