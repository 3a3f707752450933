"""Bilevel estimators against their closed forms on heterogeneous quadratics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.estimators.bilevel_truth import (
    LR,
    X,
    Y,
    aggregated,
    descend,
    implicit,
    make_data,
    run,
    series,
    upper,
)

E = fad.estimators
pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}
KINDS = pytest.mark.parametrize("heterogeneity", [0.0, 1.0])


def gradient_descent():
    return fad.solvers.gradient_descent(LR)


@KINDS
@pytest.mark.parametrize("mode", ["reverse", "forward", "mixed"])
def test_itd_is_the_derivative_of_its_steps(heterogeneity, mode):
    data = make_data(heterogeneity)
    problem, cohorts = fad.data.quadratic_problem(data)
    found = run(E.itd(problem, gradient_descent(), steps=3, mode=mode), cohorts)
    y, slope = descend(data, 3)
    value, f_x, f_y = upper(data, y)
    np.testing.assert_allclose(found.value, value, **CLOSE)
    np.testing.assert_allclose(found.state.y, y, **CLOSE)
    np.testing.assert_allclose(found.hypergradient, f_x + slope.T @ f_y, **CLOSE)
    lower = np.linalg.norm(data.mean.A @ y + data.mean.C @ X + data.mean.a)
    np.testing.assert_allclose(found.report.lower, lower, **CLOSE)
    assert found.report.target == "the R-round map"


def test_truncated_itd_differentiates_the_last_steps():
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    found = run(E.itd(problem, gradient_descent(), steps=5, last=2), cohorts)
    before, _ = descend(data, 3)
    y, slope = descend(data, 2, before)
    _, f_x, f_y = upper(data, y)
    np.testing.assert_allclose(found.hypergradient, f_x + slope.T @ f_y, **CLOSE)


def test_itd_through_fedavg_is_the_derivative_of_fedavg_alone():
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data, steps=5)
    estimator = E.itd(problem, fad.solvers.fedavg(0.3), steps=60, levels=2)
    found = run(estimator, cohorts)
    rounds = {"rounds": 60, "steps": 5, "lr": 0.3}
    own = data.fedavg_hypergradient(X, Y, **rounds)
    np.testing.assert_allclose(found.hypergradient, own, **CLOSE)
    right = data.hypergradient(X)
    bias = np.linalg.norm(own - right) / np.linalg.norm(right)
    assert bias > 0.05  # More rounds do not help.
    assert found.report.target == "the R-round map"
    assert found.report.lower > 0.01


@KINDS
@pytest.mark.parametrize(
    ("solver", "lr"), [("svrg", 0.3), ("fedlin", 0.9), ("scaffold", 0.3)]
)
def test_corrected_solvers_lead_to_the_bilevel_truth(heterogeneity, solver, lr):
    data = make_data(heterogeneity)
    problem, cohorts = fad.data.quadratic_problem(data, steps=3)
    made = getattr(fad.solvers, solver)(lr)
    found = run(E.aid(problem, made, steps=150, terms=4), cohorts)
    np.testing.assert_allclose(found.state.y, data.solution(X), **CLOSE)
    want = data.hypergradient(X)
    np.testing.assert_allclose(found.hypergradient, want, **CLOSE)
    assert found.report.lower < 1e-9
    assert found.report.linear < 1e-9
    assert abs(found.report.unfinished) < 1e-9
    E.judge(found.report)


@KINDS
def test_conjugate_gradients_are_exact_in_as_many_terms_as_numbers(heterogeneity):
    data = make_data(heterogeneity)
    problem, cohorts = fad.data.quadratic_problem(data)
    found = run(E.aid(problem, gradient_descent(), steps=2, terms=4), cohorts)
    y, _ = descend(data, 2)
    v = np.linalg.solve(data.mean.A, upper(data, y)[2])
    np.testing.assert_allclose(found.hypergradient, implicit(data, y, v), **CLOSE)
    missing = -v @ (data.mean.A @ y + data.mean.C @ X + data.mean.a)
    np.testing.assert_allclose(found.report.unfinished, missing, **CLOSE)
    change = data.mean.upper(X, data.solution(X)) - found.value
    assert abs(missing - change) < 0.5 * abs(change)  # To first order.


@pytest.mark.parametrize("terms", [0, 1, 5])
def test_a_neumann_series_is_its_first_terms(terms):
    """The first alone is T1-T2."""
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    options = {"solve": "neumann", "terms": terms, "step": LR}
    found = run(E.aid(problem, gradient_descent(), steps=2, **options), cohorts)
    y, _ = descend(data, 2)
    v = series(data.mean.A, upper(data, y)[2], terms)
    np.testing.assert_allclose(found.hypergradient, implicit(data, y, v), **CLOSE)
    assert not found.report.growing
    assert found.report.rounds == 2 + terms + 2


def test_fedihgp_is_in_the_mean_the_sum_of_its_terms():
    """Over the random length, ``N step prod`` averages to the first N terms."""
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    options = {"solve": "random-neumann", "terms": 3, "step": LR}
    estimator = E.aid(problem, gradient_descent(), steps=2, **options)
    state = estimator.init(jnp.asarray(X), jnp.asarray(Y), _first(cohorts))
    keys = jax.random.split(jax.random.key(0), 40)
    estimate = jax.jit(lambda k: estimator.estimate(jnp.asarray(X), state, cohorts, k))
    found = np.stack([estimate(k).hypergradient for k in keys])
    different = np.unique(found.round(8), axis=0)
    y, _ = descend(data, 2)
    v = series(data.mean.A, upper(data, y)[2], 2)
    assert len(different) == 3
    np.testing.assert_allclose(
        different.mean(0), implicit(data, y, v), rtol=1e-6, atol=1e-7
    )


def test_a_fixed_point_goes_on_from_the_last_estimate():
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    options = {"solve": "fixed-point", "terms": 2, "step": LR}
    estimator = E.aid(problem, gradient_descent(), steps=1, **options)
    x = jnp.asarray(X)
    state = estimator.init(x, jnp.asarray(Y), _first(cohorts))
    estimate = jax.jit(estimator.estimate)
    found = estimate(x, state, cohorts, None)
    for _ in range(200):
        found = estimate(x, found.state, cohorts, None)
    want = data.hypergradient(X)
    np.testing.assert_allclose(found.hypergradient, want, **CLOSE)


@KINDS
def test_local_hessians_have_a_bias_of_their_own(heterogeneity):
    data = make_data(heterogeneity)
    problem, cohorts = fad.data.quadratic_problem(data)
    options = {"hessian": "local", "terms": 4}
    found = run(E.aid(problem, gradient_descent(), steps=300, **options), cohorts)
    y, c = data.solution(X), data.clients
    b = c.F @ y + c.K @ X + c.f
    v = np.linalg.solve(c.A, b[..., None])[..., 0]
    f_x = c.K.swapaxes(1, 2) @ y + c.H @ X + c.h
    want = (f_x - np.einsum("npq,np->nq", c.C, v)).mean(0)
    np.testing.assert_allclose(found.hypergradient, want, **CLOSE)
    right = data.hypergradient(X)
    wrong = np.linalg.norm(want - right) / np.linalg.norm(right)
    assert (wrong > 0.1) == (heterogeneity > 0)


def test_differences_of_gradients_are_exact_where_losses_are_quadratic():
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    options = {"products": "difference", "delta": 1e-2, "terms": 4}
    found = run(E.aid(problem, gradient_descent(), steps=2, **options), cohorts)
    y, _ = descend(data, 2)
    v = np.linalg.solve(data.mean.A, upper(data, y)[2])
    want = implicit(data, y, v)
    np.testing.assert_allclose(found.hypergradient, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [10.0, 1000.0])
def test_a_penalty_is_its_own_closed_form(weight):
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    options = {"steps": 400, "lr": LR, "penalty": weight}
    found = run(E.penalty(problem, **options), cohorts)
    m, y = data.mean, data.solution(X)
    z = -np.linalg.solve(
        m.A + m.F / weight, (m.C + m.K / weight) @ X + m.a + m.f / weight
    )
    want = upper(data, z)[1] + weight * m.C.T @ (z - y)
    np.testing.assert_allclose(found.hypergradient, want, rtol=1e-8, atol=1e-8)
    error = np.linalg.norm(want - data.hypergradient(X))
    assert error < 10 / weight


def test_zeroth_order_is_the_product_of_its_directions():
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    key = jax.random.key(3)
    estimator = E.zeroth_order(problem, gradient_descent(), steps=3, directions=5)
    found = run(estimator, cohorts, key)
    own = jax.random.split(jax.random.fold_in(key, 2**31 - 1), 1)[0]
    u = np.asarray(jax.random.normal(own, (5, 3)))
    y, slope = descend(data, 3)
    _, f_x, f_y = upper(data, y)
    want = f_x + ((u @ slope.T) @ f_y) @ u / 5
    np.testing.assert_allclose(found.hypergradient, want, rtol=1e-8, atol=1e-8)


@KINDS
def test_aggitd_follows_its_recursion(heterogeneity):
    data = make_data(heterogeneity)
    problem, cohorts = fad.data.quadratic_problem(data)
    found = run(E.aggitd(problem, steps=6, lr=LR), cohorts)
    y, p, _ = aggregated(data, 6)
    np.testing.assert_allclose(found.state.y, y, **CLOSE)
    np.testing.assert_allclose(found.hypergradient, implicit(data, y, p), **CLOSE)


def test_aggitd_with_a_random_step_is_in_the_mean_the_running_sum():
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    estimator = E.aggitd(problem, steps=3, lr=LR, form="random")
    state = estimator.init(jnp.asarray(X), jnp.asarray(Y), _first(cohorts))
    estimate = jax.jit(lambda k: estimator.estimate(jnp.asarray(X), state, cohorts, k))
    y, p, z = aggregated(data, 3)
    np.testing.assert_allclose(z.mean(0), p, **CLOSE)
    want = {tuple(implicit(data, y, each).round(8)) for each in z}
    keys = jax.random.split(jax.random.key(1), 20)
    seen = {tuple(np.asarray(estimate(k).hypergradient).round(8)) for k in keys}
    assert seen == want


def test_aggitd_is_a_gradient_of_the_lower_level_s_program():
    """P is the forward-mode derivative by e of gradient steps on ``g - e f``."""
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    found = run(E.aggitd(problem, steps=6, lr=LR), cohorts)
    clients = data.at_clients()

    @fad.program
    def lower_level(e, x, clients):
        def step(y, _):
            def slope(c):
                return jax.grad(lambda y: c.lower(x, y) - e * c.upper(x, y))(y)

            return y - LR * fad.mean(fad.map(slope, clients)), None

        return jax.lax.scan(step, jnp.asarray(Y), length=6)[0]

    @fad.program
    def answer(x, y, p, clients):
        def at_client(c):
            cross = jax.grad(lambda x: jax.jvp(lambda y: c.lower(x, y), (y,), (p,))[1])
            return jax.grad(c.upper)(x, y) - cross(x)

        return fad.mean(fad.map(at_client, clients))

    x, start = jnp.asarray(X), jnp.zeros(())
    p = fad.jacobian(lower_level, mode="forward")(start, x, clients)
    y = lower_level(start, x, clients)
    np.testing.assert_allclose(found.hypergradient, answer(x, y, p, clients), **CLOSE)
    # The derivative rides along with the rounds that are there.
    moved = fad.jacobian(lower_level, mode="forward")
    assert fad.plan(moved)(start, x, clients).cost().rounds == 6


def test_rounds_are_those_of_the_papers():
    problem, cohorts = fad.data.quadratic_problem(make_data(), steps=2)
    svrg, fedavg = fad.solvers.svrg(0.2), fad.solvers.fedavg(0.2)

    def rounds(estimator, key=None):
        x, y = jnp.asarray(X), jnp.asarray(Y)
        state = estimator.init(x, y, _first(cohorts))
        out = jax.eval_shape(estimator.estimate, x, state, cohorts, key)
        return out.report.rounds

    neumann = {"solve": "neumann", "terms": 5, "step": LR}
    # One more: the weights' sum is known when the last of them has ended.
    assert rounds(E.itd(problem, svrg, steps=3)) == 2 * 6 + 2
    assert rounds(E.itd(problem, svrg, steps=3, mode="forward")) == 6 + 1
    assert rounds(E.aid(problem, svrg, steps=3, **neumann)) == 2 * 3 + 5 + 2
    assert rounds(E.aid(problem, fedavg, steps=3, **neumann)) == 3 + 5 + 2
    assert rounds(E.aid(problem, fedavg, steps=3, **neumann, hessian="local")) == 4
    assert rounds(E.aid(problem, svrg, steps=3, terms=5)) == 2 * 3 + 5 + 2
    assert rounds(E.aggitd(problem, steps=3, lr=LR)) == 2 * 3 + 1
    assert rounds(E.penalty(problem, steps=3, lr=LR, penalty=9.0)) == 3 + 1
    drawn = E.zeroth_order(problem, fedavg, steps=3)
    assert rounds(drawn, jax.random.key(0)) == 3 + 1


def test_bytes_are_those_of_the_vectors():
    problem, cohorts = fad.data.quadratic_problem(make_data())
    found = run(E.aggitd(problem, steps=3, lr=LR), cohorts).report
    x, y, number = 8 * 3, 8 * 4, 8
    # Each round sends what it needs: x, y and P or q; the last x, y and P.
    assert found.bytes_down == 3 * (x + 2 * y) + 3 * (x + 2 * y) + x + 2 * y
    weights = 4 * 2  # float32: one per level
    first, second = 3 * y + weights, y + 4
    last = y + x + number + x + weights
    assert found.bytes_up == 3 * (first + second) + last


def test_cohorts_are_taken_in_turn():
    """Two cohorts of two clients each, one per step, as in plain NumPy."""
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    turns = jax.tree.map(lambda a: a[0].reshape(2, 2, *a.shape[2:]), cohorts)
    found = run(E.itd(problem, gradient_descent(), steps=3, mode="forward"), turns)
    y, slope = Y, np.zeros((4, 3))
    for t in range(3):
        c = jax.tree.map(lambda a, t=t: a[2 * (t % 2) :][:2].mean(0), data.clients)
        y = y - LR * (c.A @ y + c.C @ X + c.a)
        slope = slope - LR * (c.A @ slope + c.C)
    c = jax.tree.map(lambda a: a[2:].mean(0), data.clients)
    want = c.K.T @ y + c.H @ X + c.h + slope.T @ (c.F @ y + c.K @ X + c.f)
    np.testing.assert_allclose(found.hypergradient, want, **CLOSE)


def test_one_client_and_an_empty_one():
    """A client of padding alone, with NaN in it, counts for nothing."""
    data = make_data(clients=2)
    problem, cohorts = fad.data.quadratic_problem(data)
    rows = lambda a: jnp.ones_like(a).at[:, 1].set(False)  # noqa: E731
    empty = jax.tree.map(
        lambda a: rows(a) if a.dtype == bool else a.at[:, 1].set(jnp.nan),
        jax.tree.map(lambda a: a if a.dtype == bool else a.astype(float), cohorts),
    )
    one = fad.data.Quadratics(jax.tree.map(lambda a: a[:1], data.clients))
    for estimator in (
        E.aid(problem, gradient_descent(), steps=2, terms=4),
        E.aggitd(problem, steps=2, lr=LR),
        E.itd(problem, gradient_descent(), steps=2),
    ):
        alone = run(estimator, fad.data.quadratic_problem(one)[1])
        found = run(estimator, empty)
        np.testing.assert_allclose(found.hypergradient, alone.hypergradient, **CLOSE)


def test_which_lays_out_every_estimator_before_any_runs():
    problem, cohorts = fad.data.quadratic_problem(make_data())
    options = E.which(
        problem,
        jnp.asarray(X),
        jnp.asarray(Y),
        cohorts,
        solver=fad.solvers.svrg(LR),
        steps=4,
        lr=LR,
        terms=3,
    )
    rounds = {row.name: row.rounds for row in options.rows}
    assert rounds["itd, reverse"] == 2 * 8 + 2
    assert rounds["aid, cg"] == 8 + 3 + 2
    assert rounds["aggitd"] == 9
    assert list(rounds.values()) == sorted(rounds.values())
    lines = str(options).splitlines()
    assert len(lines) == len(options.rows) + 1
    assert "the R-round map" in str(options)


def test_which_bounds_what_the_linear_solves_leave_out():
    data = make_data()
    problem, cohorts = fad.data.quadratic_problem(data)
    solver, lr = gradient_descent(), LR
    eigenvalues = np.linalg.eigvalsh(data.mean.A)
    curvature = float(eigenvalues[0]), float(eigenvalues[-1])
    options = {"solver": solver, "steps": 3, "lr": lr, "terms": 2}
    found = E.which(problem, X, Y, cohorts, curvature=curvature, **options)
    left: dict[str, Any] = {row.name: row.remaining for row in found.rows}
    worst = max(abs(1 - lr * h) for h in curvature)
    assert left["aid, neumann"] == pytest.approx(worst**3)
    assert left["aggitd"] == pytest.approx(worst**3)
    assert left["itd, reverse"] is left["aid, local"] is left["penalty"] is None

    v = np.linalg.solve(data.mean.A, np.ones(4))
    short = series(data.mean.A, np.ones(4), 2)
    assert np.linalg.norm(short - v) <= left["aid, neumann"] * np.linalg.norm(v)
    assert 0 < left["aid, cg"] < 1
    assert f"{worst**3:.1g}" in str(found)
    with pytest.raises(fad.FadError, match=r"which: curvature is \(0, 1\); expected"):
        E.which(problem, X, Y, cohorts, curvature=(0, 1), **options)


def _first(cohorts):
    return jax.tree.map(lambda a: a[0], cohorts)
