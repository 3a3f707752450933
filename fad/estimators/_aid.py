"""Approximate implicit differentiation: one linear system at the lower solution."""

from typing import Any, Literal, NamedTuple

from fad._errors import FadError, nearest
from fad.estimators._bilevel import (
    Bilevel,
    Client,
    check_problem,
    cohort_at,
    round_means,
)
from fad.estimators._bilevel_record import BilevelEstimator, make_estimator
from fad.estimators._checks import check_count
from fad.estimators._hoist import hoist_if
from fad.estimators._itd import fold, lower_steps
from fad.estimators._linear_rounds import SOLVES, System
from fad.estimators._local_aid import LocalAid
from fad.estimators._products import Products, SecondOrder, second_order
from fad.estimators._vectors import add, dot, norm, zeros
from fad.solvers import Solver
from fad.solvers._checks import check_lr


class State(NamedTuple):
    """The lower variable, the solver's memory, and the linear system's solution."""

    y: Any
    memory: Any
    v: Any


def aid(
    problem: Bilevel,
    solver: Solver,
    *,
    steps: int,
    solve: Literal["cg", "neumann", "random-neumann", "fixed-point"] = "cg",
    terms: int = 10,
    step: Any = None,
    hessian: Literal["global", "local"] = "global",
    products: Products = "exact",
    delta: float = 5e-3,
    keep: bool = False,
) -> BilevelEstimator:
    """Solve ``H v = grad_y f`` at the solver's y; answer ``grad_x f - J v``.

    ``H`` and ``J`` are the means over clients of the lower losses' second derivatives,
    so each product is one round and only vectors are sent. After T steps: one round for
    ``grad_y f``, one per product, one for ``J v``.

    It is right only at a solution of the lower level: the report's ``lower`` and
    ``unfinished`` say how far off that is, and ``judge`` refuses what is too far.

    Args:
        problem: The problem.
        solver: Of ``fad.solvers``; minimises the lower level.
        steps: The solver's steps T; 0 differentiates at the y that is there.
        solve: ``"cg"``, conjugate gradients; ``"neumann"``, the first ``terms + 1``
            terms of ``step sum_j (I - step H)^j``, of which the first alone, ``v = step
            grad_y f``, is T1-T2; ``"random-neumann"``, FedNest's
            FedIHGP: ``terms * step`` times one factor of random length below terms,
            unbiased for the sum of that many terms; ``"fixed-point"``, as many steps of
            ``v <- v - step (H v - grad_y f)`` from the last estimate's v (SOBA).
        terms: Products with H, a round each.
        step: At most 1 / L, a number or ``[]``; not for ``"cg"``.
        hessian: ``"global"``, or ``"local"``: each client solves with its own, in one
            round with the answer (LFedNest). That is biased where clients differ, and
            more terms do not help.
        products: ``"exact"``, or ``"difference"`` of gradients.
        delta: The way of the differences, along v.
        keep: Whether the clients keep what of their lower losses does not depend on y
            (``fad.estimators.hoist``): faster, for memory.

    Returns:
        The estimator; its ``state`` is ``(y, memory, v)``.

    Raises:
        FadError: If an option is unknown or out of range, or a step is missing; when
            called, as ``fad.estimators.itd``.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> solver = fad.solvers.gradient_descent(0.5)
        >>> estimator = fad.estimators.aid(problem, solver, steps=200, terms=3)
        >>> x, y = jnp.ones(2), jnp.zeros(3)
        >>> state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
        >>> estimate = estimator.estimate(x, state, cohorts, None)
        >>> bool(jnp.allclose(estimate.hypergradient, data.hypergradient(x), atol=1e-3))
        True
        >>> estimate.report.rounds  # 200, and 1 + 3 + 1
        205

    References:
        Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016;
        Luketina et al., "Scalable gradient-based tuning of continuous regularization
        hyperparameters", ICML 2016 (T1-T2); Lorraine et al., "Optimizing millions of
        hyperparameters by implicit differentiation", AISTATS 2020; Tarzanagh et al.,
        "FedNest: federated bilevel, minimax, and compositional optimization", ICML 2022
        (FedIHGP); Dagréou et al., "A framework for bilevel optimization", NeurIPS 2022
        (SOBA).
    """
    call = "fad.estimators.aid"
    check_problem(call, problem)
    steps = check_count(call, "steps", steps, least=0)
    terms = check_count(call, "terms", terms, least=0 if solve == "neumann" else 1)
    second = second_order(call, products, delta)
    system = _system(call, solve, terms, step)
    kinds = {"global": Aid, "local": LocalAid}
    if hessian not in kinds:
        raise FadError(
            f"{call}: unknown hessian {hessian!r}. "
            f"{nearest(str(hessian), kinds, 'hessians')}"
        )
    bias = f"that of y after {steps} steps, and of {system.bias}"
    if hessian == "local":
        bias += "; clients' differences, whatever the terms"
    return make_estimator(
        call,
        _begin(solver),
        kinds[hessian](problem, solver, steps, system, second, keep),
        target="bilevel",
        bias=bias,
        draws=steps + (1 if hessian == "local" else system.draws + 2),
        second_order=terms + 1,
    )


def _begin(solver: Solver) -> Any:
    def init(x: Any, y: Any, cohort: Any) -> State:
        del x
        return State(y, solver.init(y, cohort.lower), zeros(y))

    return init


class Aid(NamedTuple):
    """One estimate, as a function that ``fad.plan`` can lay out."""

    problem: Bilevel
    solver: Solver
    steps: int
    system: System
    second: SecondOrder
    keep: bool

    def __call__(self, x: Any, state: State, cohorts: Any, key: Any) -> Any:
        t = self.steps
        fixed, kept = hoist_if(self.keep, self.problem, x, state.y, cohorts)
        y, memory = lower_steps(fixed, self.solver, x, state, kept, key, range(t))
        (q, (value, b)) = round_means(
            fixed,
            lambda c: (c.g_y(x, y), c.f_y(x, y)),
            cohort_at(kept, t),
            fold(key, t),
        )

        def product(v: Any, j: Any) -> Any:
            def work(client: Client) -> Any:
                return self.second.hessian(client, x, y, v), ()

            cohort = cohort_at(kept, t + 1 + j)
            return round_means(fixed, work, cohort, fold(key, t + 1 + j))[0]

        v, trust = self.system.run(product, b, state.v, key)
        last = t + 1 + self.system.draws

        def answer(client: Client) -> Any:
            return self.second.cross(client, x, y, v), client.f_xy(x, y)[1][0]

        jv, f_x = round_means(
            self.problem, answer, cohort_at(cohorts, last), fold(key, last)
        )
        trust = trust._replace(lower=norm(q), unfinished=-dot(v, q))
        return value, add(f_x, jv, -1), State(y, memory, v), trust


def _system(call: str, solve: str, terms: int, step: Any) -> System:
    if solve not in SOLVES:
        raise FadError(
            f"{call}: unknown solve {solve!r}. "
            f"{nearest(str(solve), tuple(SOLVES), 'solves')}"
        )
    if solve == "cg":
        return SOLVES[solve](terms, 0.0)
    if step is None:
        raise FadError(
            f"{call}: solve={solve!r} needs step=..., at most 1 / L, L being the "
            "largest eigenvalue of the mean lower Hessian."
        )
    return SOLVES[solve](terms, check_lr(call, "step", step))
