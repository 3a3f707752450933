"""What each estimator would cost on a problem, before any is run."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from fad._errors import FadError
from fad.estimators._aggitd import aggitd
from fad.estimators._aid import aid
from fad.estimators._bilevel import Bilevel
from fad.estimators._bilevel_record import BilevelEstimator, Target
from fad.estimators._itd import itd
from fad.estimators._penalty import penalty
from fad.estimators._zeroth_order import zeroth_order
from fad.solvers import Solver


@dataclass(frozen=True)
class Option:
    """An estimator and its cost; the fields as in ``fad.estimators.Report``.

    Attributes:
        name: What it is.
        rounds: Communication rounds.
        bytes_down: What each client receives.
        bytes_up: What it sends.
        second_order: Products with a client's second derivatives.
        target: What it converges to.
        bias: What of it is left out.
        remaining: Where the curvature is known, the share of ``H^-1 grad_y f`` that is
            left out at most; None where nothing of the kind is known.
    """

    name: str
    rounds: int
    bytes_down: int
    bytes_up: int
    second_order: int
    target: Target
    bias: str
    remaining: float | None = None


@dataclass(frozen=True)
class Options:
    """The options, fewest rounds first; as text, a table."""

    rows: tuple[Option, ...]

    def __str__(self) -> str:
        """Return a table, a line per option."""
        head = ("estimator", "rounds", "down", "up", "2nd order", "at most", "target")
        head = (*head, "left out")
        lines = [head] + [
            (
                row.name,
                str(row.rounds),
                str(row.bytes_down),
                str(row.bytes_up),
                str(row.second_order),
                "" if row.remaining is None else f"{row.remaining:.1g}",
                row.target,
                row.bias,
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(w) if 1 <= i <= 5 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def which(
    problem: Bilevel,
    x: Any,
    y: Any,
    cohorts: Any,
    *,
    solver: Solver,
    steps: int,
    lr: Any,
    terms: int = 10,
    curvature: tuple[float, float] | None = None,
) -> Options:
    """Lay out every estimator for a problem: rounds, bytes, work, what it leaves out.

    Nothing is compiled or run.

    Args:
        problem: The problem.
        x: The upper variable; arrays or shapes.
        y: The lower variable.
        cohorts: ``[k, n, *]``, as for ``estimate``.
        solver: The lower level's solver.
        steps: Its steps.
        lr: The step of those that bring a lower level of their own, and of the series.
        terms: Products of the implicit ones.
        curvature: Bounds (mu, L) of the mean lower Hessian's eigenvalues, if known:
            ``remaining`` is then ``|1 - lr h|^(terms + 1)`` at the worse bound h for a
            Neumann series, the same to the power ``steps`` for aggregated iterative
            differentiation, and ``2 q^terms`` with ``q = (sqrt(L / mu) - 1) /
            (sqrt(L / mu) + 1)`` for conjugate gradients, in the norm of the Hessian.
            What y lacks comes on top.

    Returns:
        The options, fewest rounds first.

    Raises:
        FadError: As the estimators; if the curvature is not ``0 < mu <= L``.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> options = fad.estimators.which(
        ...     problem,
        ...     jnp.ones(2),
        ...     jnp.zeros(3),
        ...     cohorts,
        ...     solver=fad.solvers.svrg(0.5),
        ...     steps=5,
        ...     lr=0.5,
        ... )
        >>> [(row.name, row.rounds) for row in options.rows][:3]
        [('penalty', 6), ('itd, forward', 11), ('aid, local', 11)]
    """
    t, neumann = steps, {"terms": terms, "step": lr}
    estimators = {
        "itd, reverse": itd(problem, solver, steps=t),
        "itd, forward": itd(problem, solver, steps=t, mode="forward"),
        "itd, last step": itd(problem, solver, steps=t, last=1),
        "aid, cg": aid(problem, solver, steps=t, terms=terms),
        "aid, neumann": aid(problem, solver, steps=t, solve="neumann", **neumann),
        "aid, local": aid(problem, solver, steps=t, terms=terms, hessian="local"),
        "aggitd": aggitd(problem, steps=t, lr=lr),
        "penalty": penalty(problem, steps=t, lr=lr, penalty=100.0),
        "zeroth order": zeroth_order(problem, solver, steps=t),
    }
    left = {} if curvature is None else _remaining(curvature, steps, lr, terms)
    rows = [
        _option(name, e, x, y, cohorts, left.get(name))
        for name, e in estimators.items()
    ]
    return Options(tuple(sorted(rows, key=lambda row: row.rounds)))


def _option(
    name: str,
    estimator: BilevelEstimator,
    x: Any,
    y: Any,
    cohorts: Any,
    remaining: float | None,
) -> Option:
    def report(x: Any, y: Any, cohorts: Any) -> Any:
        first = jax.tree.map(lambda a: a[0], cohorts)
        state = estimator.init(x, y, first)
        return estimator.estimate(x, state, cohorts, jax.random.key(0)).report

    found = jax.eval_shape(report, x, y, cohorts)
    return Option(
        name,
        found.rounds,
        found.bytes_down,
        found.bytes_up,
        found.second_order,
        estimator.target,
        estimator.bias,
        remaining,
    )


def _remaining(
    curvature: tuple[float, float], steps: int, lr: Any, terms: int
) -> dict[str, float]:
    """Return what the linear solves leave out at most, by the estimators' names."""
    mu, most = (float(bound) for bound in curvature)
    if not 0 < mu <= most < math.inf:
        raise FadError(
            f"fad.estimators.which: curvature is ({mu:g}, {most:g}); expected (mu, L) "
            "with 0 < mu <= L. The lower level must be strongly convex."
        )
    contraction = max(abs(1 - float(lr) * mu), abs(1 - float(lr) * most))
    root = math.sqrt(most / mu)
    return {
        "aid, neumann": contraction ** (terms + 1),
        "aid, cg": min(1.0, 2 * ((root - 1) / (root + 1)) ** terms),
        "aggitd": contraction**steps,
    }
