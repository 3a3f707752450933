"""Say so where a hypergradient's assumptions do not hold."""

import math
import warnings

from fad._errors import FadError
from fad.estimators._bilevel_record import Report


class HypergradientWarning(UserWarning):
    """A hypergradient is less exact than was asked for."""


class Unconverged(FadError):
    """The lower level is too far from its solution for an implicit hypergradient."""


class NotPositiveDefinite(FadError):
    """The lower level's Hessian is not positive definite, or a step is too long."""


def judge(report: Report, *, tolerance: float = 1e-3, bound: float = math.inf) -> None:
    """Warn of an estimate that is not to be trusted, or refuse it.

    An implicit hypergradient (``target == "bilevel"``) assumes that the lower level is
    solved and its Hessian positive definite. It runs on the host, on the numbers of a
    report, between steps.

    Args:
        report: Of an estimate.
        tolerance: The lower gradient's norm, and the linear system's relative residual,
            above which to warn.
        bound: The lower gradient's norm above which to refuse.

    Raises:
        Unconverged: If the lower gradient's norm is above the bound, or not finite.
        NotPositiveDefinite: If conjugate gradients met curvature <= 0, or the terms of
            a Neumann series grew.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> solver = fad.solvers.gradient_descent(0.5)
        >>> estimator = fad.estimators.aid(problem, solver, steps=2)
        >>> x, y = jnp.ones(2), jnp.zeros(3)
        >>> state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
        >>> estimate = estimator.estimate(x, state, cohorts, None)
        >>> try:
        ...     fad.estimators.judge(estimate.report, bound=0.1)
        ... except fad.estimators.Unconverged:
        ...     print("more steps of the solver")
        more steps of the solver
    """
    call = "fad.estimators.judge"
    if bool(report.indefinite):
        raise NotPositiveDefinite(
            f"{call}: conjugate gradients met a direction of curvature <= 0: the mean "
            "lower Hessian is not positive definite at this y, and the hypergradient "
            "not defined. Add a regulariser to the lower loss, or solve it further."
        )
    if bool(report.growing):
        raise NotPositiveDefinite(
            f"{call}: the terms of the Neumann series grew, as they do where step >= "
            "2 / L for the largest eigenvalue L of the mean lower Hessian, or where "
            "that is indefinite. Take a shorter step, or solve='cg'."
        )
    if report.target != "bilevel":
        return
    lower, unfinished = float(report.lower), float(report.unfinished)
    found = f"{call}: the lower level is not solved: |mean grad_y g| = {lower:.3g}"
    if not math.isnan(unfinished):
        found += f", worth {unfinished:+.3g} of the upper value to first order"
    advice = "Take more steps of the solver, or use fad.estimators.itd."
    if not lower <= bound:
        raise Unconverged(f"{found}; the bound is {bound:g}. {advice}")
    if lower > tolerance:
        warnings.warn(f"{found}. {advice}", HypergradientWarning, stacklevel=2)
    if float(report.linear) > tolerance:
        warnings.warn(
            f"{call}: the linear system is solved to a relative residual of "
            f"{float(report.linear):.3g}. Take more terms.",
            HypergradientWarning,
            stacklevel=2,
        )
