"""What bilevel estimators refuse, and what they warn of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.estimators.bilevel_truth import LR, X, Y, make_data, run

E: Any = fad.estimators
pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]


@pytest.fixture
def problem(x64):
    return fad.data.quadratic_problem(make_data())


def gd():
    return fad.solvers.gradient_descent(LR)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: E.itd(None, gd(), steps=1), r"itd: problem is .*Bilevel\("),
        (
            lambda p: E.itd(p._replace(weighting="exmples"), gd(), steps=1),
            "problem.weighting is 'exmples'. Did you mean 'examples'",
        ),
        (lambda p: E.itd(p, gd(), steps=0), "steps to be an int >= 1, got 0"),
        (lambda p: E.itd(p, gd(), steps=2, last=0), "last to be an int >= 1"),
        (lambda p: E.itd(p, gd(), steps=2, levels=-1), "levels to be an int >= 0"),
        (
            lambda p: E.itd(p, gd(), steps=1, mode="revers"),
            "unknown mode 'revers'. Did you mean 'reverse'",
        ),
        (
            lambda p: E.aid(p, gd(), steps=1, solve="gc"),
            "unknown solve 'gc'. Known solves: cg, fixed-point",
        ),
        (
            lambda p: E.aid(p, gd(), steps=1, solve="neumann"),
            r"solve='neumann' needs step=..., at most 1 / L",
        ),
        (lambda p: E.aid(p, gd(), steps=1, terms=0), "terms to be an int >= 1"),
        (
            lambda p: E.aid(p, gd(), steps=1, solve="neumann", step=-1.0),
            r"step is .*; expected a positive, finite number",
        ),
        (
            lambda p: E.aid(p, gd(), steps=1, hessian="locl"),
            "unknown hessian 'locl'. Did you mean 'local'",
        ),
        (
            lambda p: E.aid(p, gd(), steps=1, products="exct"),
            "unknown products 'exct'. Did you mean 'exact'",
        ),
        (
            lambda p: E.aid(p, gd(), steps=1, products="difference", delta=0),
            "delta > 0 and finite, got 0",
        ),
        (
            lambda p: E.aggitd(p, steps=1, lr=LR, form="rand"),
            "unknown form 'rand'. Did you mean 'random'",
        ),
        (
            lambda p: E.aggitd(p, steps=1, lr=0.0),
            "lr is .*; expected a positive, finite",
        ),
        (lambda p: E.penalty(p, steps=1, lr=LR, penalty=-1.0), "penalty > 0 and"),
        (
            lambda p: E.zeroth_order(p, gd(), steps=1, directions=0),
            "directions to be an int >= 1",
        ),
        (
            lambda p: E.zeroth_order(p, gd(), steps=1, smoothing=np.inf),
            "smoothing > 0 and finite, got inf",
        ),
    ],
)
def test_options_out_of_range_are_refused(problem, build, message):
    with pytest.raises(fad.FadError, match=message):
        build(problem[0])


def test_arguments_are_refused_by_path(problem):
    problem, cohorts = problem
    estimator = E.itd(problem, gd(), steps=1)
    x, y = jnp.asarray(X), jnp.asarray(Y)
    first = jax.tree.map(lambda a: a[0], cohorts)
    with pytest.raises(fad.FadError, match=r"x\['a'\] is int"):
        estimator.init({"a": 3}, y, first)
    with pytest.raises(fad.FadError, match="y has no arrays"):
        estimator.init(x, (), first)
    state = estimator.init(x, y, first)
    with pytest.raises(fad.FadError, match=r"cohorts is .*Split\(lower, upper\)"):
        estimator.estimate(x, state, x, None)
    with pytest.raises(fad.FadError, match=r"lower.mask .*stacked over rounds"):
        estimator.estimate(x, state, first, None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: E.aggitd(p, steps=1, lr=LR, form="random"), "aggitd: form='random'"),
        (lambda p: E.zeroth_order(p, gd(), steps=1), "zeroth_order: directions"),
        (
            lambda p: E.aid(p, gd(), steps=1, solve="random-neumann", terms=2, step=LR),
            "aid: solve='random-neumann'",
        ),
    ],
)
def test_random_estimators_ask_for_a_key(problem, build, message):
    with pytest.raises(fad.FadError, match=f"{message}.*key"):
        run(build(problem[0]), problem[1])


def test_an_unsolved_lower_level_is_said_and_past_a_bound_refused(problem):
    report = run(E.aid(problem[0], gd(), steps=1, terms=4), problem[1]).report
    found = rf"\|mean grad_y g\| = {float(report.lower):.3g}, worth .* first order"
    with pytest.warns(E.HypergradientWarning, match=found):
        E.judge(report)
    with pytest.raises(E.Unconverged, match=r"the bound is 0.01\. Take more steps"):
        E.judge(report, bound=0.01)


def test_a_diverged_lower_level_is_refused():
    problem, cohorts = fad.data.quadratic_problem(make_data())
    solver = fad.solvers.gradient_descent(1e80)
    report = run(E.aid(problem, solver, steps=9, terms=2), cohorts).report
    with pytest.raises((E.Unconverged, E.NotPositiveDefinite)):
        E.judge(report, bound=1.0)


def test_an_unsolved_linear_system_is_said(problem):
    report = run(E.aid(problem[0], gd(), steps=150, terms=1), problem[1]).report
    with pytest.warns(E.HypergradientWarning, match="relative residual of .* more"):
        E.judge(report)


def test_another_truth_is_no_matter_of_convergence(problem):
    """ITD is exact for its own map; the report says which truth that is."""
    E.judge(run(E.itd(problem[0], gd(), steps=1), problem[1]).report, bound=0.0)


def test_an_indefinite_hessian_is_named():
    data = make_data()
    convex, cohorts = fad.data.quadratic_problem(data)

    def saddle(x, y, examples):
        return convex.lower(x, y, examples) - 3 * jnp.sum(y[:2] ** 2)

    problem = convex._replace(lower=saddle)
    report = run(E.aid(problem, gd(), steps=0, terms=4), cohorts).report
    with pytest.raises(E.NotPositiveDefinite, match="curvature <= 0"):
        E.judge(report)


@pytest.mark.parametrize("solve", ["neumann", "random-neumann", "fixed-point"])
def test_a_neumann_step_that_is_too_long_is_named(problem, solve):
    options = {"solve": solve, "terms": 8, "step": 5.0}
    estimator = E.aid(problem[0], gd(), steps=0, **options)
    report = run(estimator, problem[1], jax.random.key(1)).report
    with pytest.raises(E.NotPositiveDefinite, match="step >= 2 / L"):
        E.judge(report)
