"""First-order hypergradients: by a penalty, and by finite differences of whole runs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad.estimators._bilevel import (
    Bilevel,
    Client,
    check_problem,
    cohort_at,
    round_means,
)
from fad.estimators._bilevel_record import BilevelEstimator, Trust, make_estimator
from fad.estimators._checks import check_count, check_positive
from fad.estimators._itd import fold
from fad.estimators._vectors import add, norm, times
from fad.solvers._checks import check_lr


class State(NamedTuple):
    """The lower solution y, and z, that of ``g + f / penalty``."""

    y: Any
    z: Any


def penalty(
    problem: Bilevel, *, steps: int, lr: Any, penalty: float
) -> BilevelEstimator:
    """Answer by gradients alone: ``grad_x f(x, z) + penalty (g_x(x, z) - g_x(x, y))``.

    ``y`` minimises ``g`` and ``z`` minimises ``g + f / penalty``, both by gradient
    steps that share their rounds and go on from the last estimate. With both solved the
    error is ``O(1 / penalty)``; the difference of gradients amplifies what y and z lack
    by the penalty, and in float32 rounding too.

    Args:
        problem: The problem.
        steps: Gradient steps of y and of z, a round each; at least 1.
        lr: Their step, below 2 / L; a number or ``[]``.
        penalty: The weight of the lower level.

    Returns:
        The estimator; its ``state`` is ``(y, z)``.

    Raises:
        FadError: If a number is out of range; when called, as ``fad.estimators.itd``.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> options = {"steps": 300, "lr": 0.5, "penalty": 100.0}
        >>> estimator = fad.estimators.penalty(problem, **options)
        >>> x, y = jnp.ones(2), jnp.zeros(3)
        >>> state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
        >>> estimate = estimator.estimate(x, state, cohorts, None)
        >>> estimate.report.rounds, estimate.report.second_order
        (301, 0)

    References:
        Kwon et al., "A fully first-order method for stochastic bilevel optimization",
        ICML 2023 (F2SA).
    """
    call = "fad.estimators.penalty"
    check_problem(call, problem)
    steps = check_count(call, "steps", steps, least=1)
    lr = check_lr(call, "lr", lr)
    weight = check_positive(call, "penalty", penalty)
    return make_estimator(
        call,
        lambda x, y, cohort: State(y, y),
        _Penalty(problem, steps, lr, weight),
        target="bilevel",
        bias=f"O(1 / penalty) with penalty {weight:g}, and that of y and z",
        draws=steps + 1,
        second_order=0,
    )


class _Penalty(NamedTuple):
    """One estimate, as a function that ``fad.plan`` can lay out."""

    problem: Bilevel
    steps: int
    lr: Any
    weight: float

    def __call__(self, x: Any, state: State, cohorts: Any, key: Any) -> Any:
        problem, weight = self.problem, self.weight

        def one(state: State, t: jax.Array) -> tuple[State, None]:
            y, z = state

            def work(client: Client) -> Any:
                lower = client.g_y(x, y), client.g_y(x, z)
                return lower, jax.grad(client.f, 1)(x, z)

            cohort = cohort_at(cohorts, t)
            (at_y, at_z), f_z = round_means(problem, work, cohort, fold(key, t))
            pull = add(at_z, times(1 / weight, f_z))
            return State(add(y, at_y, -self.lr), add(z, pull, -self.lr)), None

        (y, z), _ = jax.lax.scan(one, state, jnp.arange(self.steps))

        def answer(client: Client) -> Any:
            by_x = [jax.grad(client.g)(x, v) for v in (y, z)]
            upper = client.f(x, y), jax.grad(client.f)(x, z)
            return (client.g_y(x, y), *by_x), upper

        last, own = cohort_at(cohorts, self.steps), fold(key, self.steps)
        (q, g_y, g_z), (value, f_x) = round_means(problem, answer, last, own)
        gradient = add(f_x, add(g_z, g_y, -1), weight)
        return value, gradient, State(y, z), Trust(lower=norm(q))
