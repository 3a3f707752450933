"""FedMBO: right in the mean, and outside of what fad can vouch for."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from algorithms import fedmbo as module
from algorithms.fedmbo import Config, fedmbo, passed_on
from tests.algorithms.bilevel_loops import (
    CLOSE,
    START,
    builds,
    mean_upper,
    random_losses_get_keys,
    run,
    same,
    setting,
)
from tests.estimators.bilevel_truth import X, Y, descend, implicit, series, upper

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
LRS: Any = {"lower_lr": 0.4, "upper_lr": 0.2, "neumann_step": 0.5}


def make(problem, *start, **options):
    """Without the single loops' options."""
    return fedmbo(problem, *start, **LRS, terms=options.get("terms", 2))


def test_an_epoch_is_its_equations_where_lower_levels_agree():
    data, problem, cohort = setting(0.0)
    algorithm = fedmbo(problem, *START, **LRS, inner_steps=3, terms=4)
    state, metrics = run(algorithm, cohort, 1)
    y, _ = descend(data, 3, lr=0.4)
    h = implicit(data, y, series(data.mean.A, upper(data, y)[2], 4))
    np.testing.assert_allclose(state.y, y, **CLOSE)
    np.testing.assert_allclose(state.x, X - 0.2 * h, **CLOSE)
    np.testing.assert_allclose(metrics["hypergradient"], np.linalg.norm(h), **CLOSE)
    np.testing.assert_allclose(metrics["upper_loss"], mean_upper(data, (X, y)), **CLOSE)
    slope = data.mean.A @ y + data.mean.C @ X + data.mean.a
    size = np.linalg.norm(slope)
    np.testing.assert_allclose(metrics["lower_residual"], size, **CLOSE)
    assert state.params[1] is state.y


def test_reaches_the_optimum_where_lower_levels_agree():
    data, problem, cohort = setting(0.0)
    algorithm = fedmbo(problem, *START, **LRS, inner_steps=3, terms=200)
    state, _ = run(algorithm, cohort, 200)
    np.testing.assert_allclose(state.x, data.optimum(), rtol=1e-5, atol=1e-5)


def test_where_clients_differ_it_is_right_in_the_mean():
    data, problem, cohort = setting()
    algorithm = fedmbo(problem, *START, **LRS, terms=2)
    state = algorithm.init(jax.random.key(0))
    many = jax.vmap(lambda key: algorithm.step(state, cohort, key)[0])
    xs = np.asarray(jax.jit(many)(jax.random.split(jax.random.key(1), 2000)).x)
    y, _ = descend(data, 1, lr=0.4)
    right = X - 0.2 * implicit(data, y, series(data.mean.A, upper(data, y)[2], 2))
    spread = xs.std(0) / np.sqrt(len(xs))
    assert (spread > 0).all()
    assert (abs(xs.mean(0) - right) < 4 * spread).all()


def test_the_check_refuses_it():
    _, problem, cohort = setting(clients=2)
    algorithm = make(problem, *START)
    args = algorithm.init(jax.random.key(0)), cohort, jax.random.key(0)
    words = "a client value reaches the server through 'gather'"
    with pytest.raises(fad.PlacementError, match=words):
        fad.check(algorithm.step)(*args)
    report = fad.check(algorithm.step, allow="unsafe_gather")(*args)
    assert report.allowed
    assert {a.kind for a in report.allowed} == {"unsafe_gather"}


def test_the_plan_counts_the_rounds_that_end_in_a_sum_alone():
    _, problem, cohort = setting(clients=2)
    algorithm = fedmbo(problem, *START, **LRS, inner_steps=3, terms=5)
    args = algorithm.init(jax.random.key(0)), cohort, jax.random.key(0)
    assert fad.plan(algorithm.step)(*args).cost().rounds == 3 + 1


def test_it_says_so_itself():
    text = re.sub(r"\s+", " ", module.__doc__ or "")
    assert "It needs unicast" in text
    assert "outside of what federated computations are closed under" in text


def test_a_chain_goes_to_one_client():
    chains = fad.AtClients({"p": jnp.arange(5.0)})
    orders = [
        passed_on(chains, jax.random.key(k)).unsafe_gather()["p"] for k in range(20)
    ]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(map(float, order)) for order in orders}) > 10


def test_one_client_hands_the_chain_to_itself():
    data, problem, cohort = setting(clients=1)
    state, _ = run(fedmbo(problem, *START, **LRS, terms=3), cohort, 1)
    y, _ = descend(data, 1, lr=0.4)
    h = implicit(data, y, series(data.mean.A, upper(data, y)[2], 3))
    np.testing.assert_allclose(state.x, X - 0.2 * h, **CLOSE)


def test_a_step_has_a_gradient():
    data, problem, cohort = setting(0.0)
    mean = jax.tree.map(jnp.asarray, data.mean)

    def loss(lr):
        algorithm = fedmbo(problem, *START, **{**LRS, "upper_lr": lr}, terms=2)
        state, _ = algorithm.step(
            algorithm.init(jax.random.key(0)), cohort, jax.random.key(0)
        )
        return mean.upper(state.x, state.y)

    def plainly(lr):
        y, _ = descend(data, 1, lr=0.4)
        h = implicit(data, y, series(data.mean.A, upper(data, y)[2], 2))
        return mean.upper(X - lr * h, y)

    same(*(jax.jit(jax.value_and_grad(f))(0.2) for f in (loss, plainly)))
    assert Y.shape == (4,)


def test_random_losses_get_keys():
    random_losses_get_keys(make)


def test_builds():
    builds(module)


def test_clients_count_the_same():
    _, problem, _ = setting(clients=2)
    with pytest.raises(fad.FadError, match="weighting is 'examples'; expected 'unif"):
        make(problem._replace(weighting="examples"), *START)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_lr": 0.0}, r"lower_lr: expected in \(0, inf\), got 0.0"),
        ({"upper_lr": 0.0}, r"upper_lr: expected in \(0, inf\), got 0.0"),
        ({"neumann_step": 0.0}, r"neumann_step: expected in \(0, inf\), got 0.0"),
        ({"inner_steps": 0}, r"inner_steps: expected in \[1, inf\), got 0"),
        ({"terms": 0}, r"terms: expected in \[1, inf\), got 0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
