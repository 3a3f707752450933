"""Iterative differentiation: the derivative of the lower level's rounds themselves."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError, nearest
from fad.estimators._bilevel import (
    Bilevel,
    Client,
    Split,
    check_problem,
    cohort_at,
    round_means,
)
from fad.estimators._bilevel_record import BilevelEstimator, Trust, make_estimator
from fad.estimators._checks import check_count
from fad.estimators._vectors import norm
from fad.estimators._window import scan_rounds
from fad.modes import value_and_grad
from fad.placement import AtClients
from fad.solvers import Solver

_MODES = ("forward", "reverse", "mixed")


class Lower(NamedTuple):
    """The lower variable, and what its solver remembers."""

    y: Any
    memory: Any


def itd(
    problem: Bilevel,
    solver: Solver,
    *,
    steps: int,
    mode: Literal["forward", "reverse", "mixed"] = "reverse",
    last: int | None = None,
    levels: int = 0,
) -> BilevelEstimator:
    """Differentiate ``F(x) = mean_i f_i(x, y_T(x))`` through the solver's steps.

    The gradient is exact for the map that the T steps are, whatever the solver. It is
    that of the bilevel problem in the limit only if the solver's fixed point is the
    lower level's solution for every x (gradient descent, SVRG, FedLin, SCAFFOLD); with
    several local steps of FedAvg on unlike clients it never is.

    In reverse mode T steps take as many rounds again, with the same clients, last round
    first; forward mode adds no round and sends one tangent per number in x.

    Args:
        problem: The problem.
        solver: Of ``fad.solvers``; minimises the lower level.
        steps: The solver's steps T, at least 1.
        mode: Of ``fad.grad``.
        last: Truncation: differentiate the last k steps alone; the y before them counts
            as constant.
        levels: What the server keeps in reverse mode, as in ``fad.estimators.reverse``.

    Returns:
        The estimator; its ``state`` is ``(y, memory)`` after the steps.

    Raises:
        FadError: If the mode is unknown or a number out of range; when called, if x or
            y are not real, or the cohorts no stacked splits.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> solver = fad.solvers.gradient_descent(0.5)
        >>> estimator = fad.estimators.itd(problem, solver, steps=60)
        >>> x, y = jnp.ones(2), jnp.zeros(3)
        >>> state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
        >>> estimate = estimator.estimate(x, state, cohorts, None)
        >>> bool(jnp.allclose(estimate.hypergradient, data.hypergradient(x), atol=1e-2))
        True
        >>> estimate.report.rounds, estimate.report.target
        (122, 'the R-round map')

    References:
        Maclaurin et al., "Gradient-based hyperparameter optimization through reversible
        learning", ICML 2015; Franceschi et al., "Forward and reverse gradient-based
        hyperparameter optimization", ICML 2017; Shaban et al., "Truncated
        back-propagation for bilevel optimization", AISTATS 2019.
    """
    call = "fad.estimators.itd"
    check_problem(call, problem)
    steps = check_count(call, "steps", steps, least=1)
    last = check_count(call, "last", steps if last is None else last, least=1)
    levels = check_count(call, "levels", levels, least=0)
    if mode not in _MODES:
        raise FadError(
            f"{call}: unknown mode {mode!r}. {nearest(mode, _MODES, 'modes')}"
        )
    head = max(steps - last, 0)

    def objective(x: Any, state: Lower, cohorts: Any, key: Any) -> Any:
        def descend(x: Any, state: Lower, rounds: range) -> Lower:
            options = {"levels": levels}
            return lower_steps(
                problem, solver, x, state, cohorts, key, rounds, **options
            )

        still = jax.lax.stop_gradient
        state = still(descend(still(x), state, range(head)))
        state = descend(x, state, range(head, steps))
        final = cohort_at(cohorts, steps)
        value, q = upper_value(problem, x, state.y, final, fold(key, steps))
        return value, (state, norm(q))

    def run(x: Any, state: Lower, cohorts: Any, key: Any) -> Any:
        gradient = value_and_grad(objective, mode=mode, has_aux=True)
        (value, (state, lower)), gradient = gradient(x, state, cohorts, key)
        return value, gradient, state, Trust(lower=lower)

    return make_estimator(
        call,
        begin(solver),
        run,
        target="the R-round map",
        bias=_bias(steps, last),
        draws=steps + 1,
        second_order=min(last, steps),
    )


def begin(solver: Solver) -> Any:
    """Return the ``init`` of an estimator whose state begins with the solver's."""

    def init(x: Any, y: Any, cohort: AtClients[Split]) -> Lower:
        del x
        return Lower(y, solver.init(y, cohort.lower))

    return init


def lower_steps(
    problem: Bilevel,
    solver: Solver,
    x: Any,
    state: Any,
    cohorts: Any,
    key: Any,
    rounds: range,
    *,
    levels: int = 0,
) -> Lower:
    """Take the solver's steps with those numbers."""
    start = Lower(state.y, state.memory)
    if not rounds:
        return start

    def loss(y: Any, *examples: Any) -> jax.Array:
        return problem.lower(x, y, *examples)

    def step(state: Lower, j: jax.Array) -> tuple[Lower, None]:
        cohort = cohort_at(cohorts, j).lower
        own = fold(key, j) if problem.random else None
        return Lower(*solver.step(loss, *state, cohort, own)), None

    numbers = jnp.arange(rounds.start, rounds.stop)
    return scan_rounds(step, start, numbers, levels=levels)[0]


def upper_value(problem: Bilevel, x: Any, y: Any, cohort: Any, key: Any) -> Any:
    """Return ``mean_i f_i`` and ``mean_i grad_y g_i``, in one round."""
    still = jax.lax.stop_gradient

    def work(client: Client) -> Any:
        return still(client.g_y(still(x), still(y))), client.f(x, y)

    q, value = round_means(problem, work, cohort, key)
    return value, q


def fold(key: Any, j: Any) -> Any:
    """Return the key of round ``j``; None stays None."""
    return None if key is None else jax.random.fold_in(key, j)


def _bias(steps: int, last: int) -> str:
    text = f"none for the map of {steps} steps; the bilevel one as they converge to it"
    if last < steps:
        text = f"truncated: of {steps} steps the last {last} count"
    return text
