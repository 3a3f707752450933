"""The centralised reference on the federated problem."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from algorithms import centralised_bilevel as module
from algorithms.centralised_bilevel import (
    Config,
    at_one_place,
    centralised_bilevel,
    pooled,
)
from tests.algorithms.bilevel_loops import (
    CLOSE,
    START,
    builds,
    masked,
    mean_upper,
    random_losses_get_keys,
    rows_in_one_batch,
    run,
    same,
    setting,
)
from tests.estimators.bilevel_truth import X, Y, descend, implicit, upper

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
LRS: Any = {"lower_lr": 0.4, "upper_lr": 0.3}


def make(problem, *start, **options):
    """Without the single loops' options."""
    del options
    return centralised_bilevel(problem, *start, **LRS, inner_steps=2, terms=2)


def test_a_step_is_its_equations():
    data, problem, cohort = setting(steps=3)
    algorithm = centralised_bilevel(problem, *START, **LRS, inner_steps=5, terms=4)
    state, metrics = run(algorithm, cohort, 1)
    y, _ = descend(data, 5, lr=0.4)
    v = np.linalg.solve(data.mean.A, upper(data, y)[2])  # as CG has it in 4 steps
    h = implicit(data, y, v)
    np.testing.assert_allclose(state.y, y, **CLOSE)
    np.testing.assert_allclose(state.x, X - 0.3 * h, **CLOSE)
    np.testing.assert_allclose(metrics["hypergradient"], np.linalg.norm(h), **CLOSE)
    np.testing.assert_allclose(metrics["upper_loss"], mean_upper(data, (X, y)), **CLOSE)
    slope = data.mean.A @ y + data.mean.C @ X + data.mean.a
    size = np.linalg.norm(slope)
    np.testing.assert_allclose(metrics["lower_residual"], size, **CLOSE)
    assert metrics["linear_residual"] < 1e-10
    assert state.params[0] is state.x


def test_reaches_the_optimum():
    data, problem, cohort = setting(steps=2)
    algorithm = centralised_bilevel(problem, *START, **LRS, inner_steps=10, terms=4)
    state, metrics = run(algorithm, cohort, 100)
    best = data.optimum()
    np.testing.assert_allclose(state.x, best, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(state.y, data.solution(best), rtol=1e-8, atol=1e-8)
    assert metrics["hypergradient"] < 1e-8


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_it_is_the_federated_problem(weighting):
    """The clients' rows differ, one has none at all, and padding is NaN."""
    _, problem, cohort = setting()
    problem = problem._replace(weighting=weighting)
    rows = rows_in_one_batch(cohort, np.array([1, 0, 3, 2]), np.array([3, 0, 1, 2]))
    split = rows.unsafe_gather()

    def padded(batches):
        def one(a):
            real = batches.mask.reshape(*batches.mask.shape, *[1] * (a.ndim - 3))
            return jnp.where(real, a, jnp.full_like(a, jnp.nan))

        return batches._replace(examples=jax.tree.map(one, batches.examples))

    rows = fad.AtClients(type(split)(*map(padded, split)))

    def means(problem, cohort):
        def work(client):
            return client.g_y(X, Y), client.f_xy(X, Y)

        return fad.estimators.round_means(problem, work, cohort, None)

    same(means(at_one_place(problem), pooled(problem, rows)), means(problem, rows))


def test_nobody_changes_nothing():
    _, problem, cohort = setting(steps=2)
    nobody = masked(cohort, np.zeros((4, 2)), np.zeros((4, 1)))
    state, metrics = run(make(problem, *START), nobody, 1)
    same(state, (X, Y))
    assert all(np.isfinite(a) for a in jax.tree.leaves(metrics))


def test_one_client_is_no_other_problem():
    _, problem, cohort = setting(None)
    alone = jax.tree.map(lambda a: a[:1], cohort)
    same(*(run(make(problem, *START), c, 2) for c in (cohort, alone)))


def test_the_check_refuses_it():
    _, problem, cohort = setting(clients=2)
    algorithm = make(problem, *START)
    args = algorithm.init(jax.random.key(0)), cohort, jax.random.key(0)
    with pytest.raises(fad.PlacementError, match="a client value reaches the server"):
        fad.check(algorithm.step)(*args)


def test_the_loss_after_steps_has_the_gradient_of_plain_jax():
    data, problem, cohort = setting(clients=2)
    m = jax.tree.map(jnp.asarray, data.mean)

    def loss(lr):
        options = {**LRS, "upper_lr": lr, "inner_steps": 2, "terms": 4}
        state, _ = run(centralised_bilevel(problem, *START, **options), cohort, 3)
        return m.upper(state.x, state.y)

    def plainly(lr):
        x, y = jnp.asarray(X), jnp.asarray(Y)
        for _ in range(3):
            for _ in range(2):
                y = y - 0.4 * (m.A @ y + m.C @ x + m.a)
            v = jnp.linalg.solve(m.A, m.F @ y + m.K @ x + m.f)
            x = x - lr * (m.K.T @ y + m.H @ x + m.h - m.C.T @ v)
        return m.upper(x, y)

    same(*(jax.jit(jax.value_and_grad(f))(0.2) for f in (loss, plainly)))


def test_random_losses_get_keys():
    random_losses_get_keys(make)


def test_builds():
    builds(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_lr": 0.0}, r"lower_lr: expected in \(0, inf\), got 0.0"),
        ({"upper_lr": 0.0}, r"upper_lr: expected in \(0, inf\), got 0.0"),
        ({"inner_steps": 0}, r"inner_steps: expected in \[1, inf\), got 0"),
        ({"terms": 0}, r"terms: expected in \[1, inf\), got 0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
