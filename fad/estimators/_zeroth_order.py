"""Zeroth-order hypergradients: the lower level run again from perturbed x."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.estimators._bilevel import (
    Bilevel,
    Client,
    check_problem,
    cohort_at,
    round_means,
)
from fad.estimators._bilevel_record import BilevelEstimator, Trust, make_estimator
from fad.estimators._checks import check_count, check_positive
from fad.estimators._itd import begin, fold, lower_steps
from fad.estimators._vectors import add, dot, norm, times
from fad.solvers import Solver


def zeroth_order(
    problem: Bilevel,
    solver: Solver,
    *,
    steps: int,
    directions: int = 10,
    smoothing: float = 1e-2,
) -> BilevelEstimator:
    """Estimate the response dy/dx by finite differences along random directions.

    With normal ``u_j``, ``h = grad_x f + mean_j <(y_T(x + s u_j) - y_T(x)) / s,
    grad_y f> u_j``. The runs go side by side in the same rounds, each with a y of its
    own; no second derivative is taken. The variance falls with the number of
    directions and grows with that of x's entries.

    Args:
        problem: The problem.
        solver: Of ``fad.solvers``; minimises the lower level.
        steps: The solver's steps T, at least 1.
        directions: How many, at least 1.
        smoothing: The length s of the perturbations.

    Returns:
        The estimator; its ``state`` is ``(y, memory)`` after the steps at x.

    Raises:
        FadError: If a number is out of range; when called, if there is no key, or as
            ``fad.estimators.itd``.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> solver = fad.solvers.gradient_descent(0.5)
        >>> estimator = fad.estimators.zeroth_order(problem, solver, steps=20)
        >>> x, y = jnp.ones(2), jnp.zeros(3)
        >>> state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
        >>> estimate = estimator.estimate(x, state, cohorts, jax.random.key(0))
        >>> estimate.report.rounds
        21

    References:
        Sow et al., "On the convergence theory for Hessian-free bilevel algorithms",
        NeurIPS 2022 (PZOBO).
    """
    call = "fad.estimators.zeroth_order"
    check_problem(call, problem)
    steps = check_count(call, "steps", steps, least=1)
    directions = check_count(call, "directions", directions, least=1)
    smoothing = check_positive(call, "smoothing", smoothing)
    return make_estimator(
        call,
        begin(solver),
        _ZerothOrder(problem, solver, steps, directions, smoothing),
        target="the R-round map",
        bias=f"none in the mean for the smoothed map, s = {smoothing:g}; its variance",
        draws=steps + 1,
        second_order=0,
    )


class _ZerothOrder(NamedTuple):
    """One estimate, as a function that ``fad.plan`` can lay out."""

    problem: Bilevel
    solver: Solver
    steps: int
    directions: int
    smoothing: float

    def __call__(self, x: Any, state: Any, cohorts: Any, key: Any) -> Any:
        if key is None:
            raise FadError(
                "fad.estimators.zeroth_order: directions are drawn from a key, such as "
                "jax.random.key(0); got None."
            )
        problem, own = self.problem, jax.random.fold_in(key, 2**31 - 1)

        def run(x: Any) -> Any:
            rounds = range(self.steps)
            return lower_steps(problem, self.solver, x, state, cohorts, key, rounds)

        def moved(u: Any) -> Any:
            y = run(add(x, u, self.smoothing)).y
            return times(1 / self.smoothing, add(y, new.y, -1))

        new = run(x)
        u = _normal(own, x, self.directions)
        responses = jax.vmap(moved)(u)

        def answer(client: Client) -> Any:
            return client.g_y(x, new.y), client.f_xy(x, new.y)

        last = cohort_at(cohorts, self.steps)
        q, (value, (f_x, f_y)) = round_means(
            problem, answer, last, fold(key, self.steps)
        )
        slopes = jax.vmap(lambda r: dot(r, f_y))(responses) / self.directions
        seen = jax.tree.map(
            lambda d: jnp.tensordot(slopes.astype(d.dtype), d, axes=1), u
        )
        return value, add(f_x, seen), new, Trust(lower=norm(q))


def _normal(key: jax.Array, x: Any, count: int) -> Any:
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, (count, *a.shape), a.dtype)
        for k, a in zip(keys, leaves, strict=True)
    ]
    return structure.unflatten(drawn)
