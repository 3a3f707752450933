"""What a bilevel estimator is, and what it reports of itself."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fad.estimators._bilevel import check_cohorts
from fad.estimators._checks import check_theta
from fad.plan import plan

Target = Literal["bilevel", "the R-round map"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("lower", "linear", "unfinished", "indefinite", "growing"),
    meta_fields=("target", "rounds", "bytes_down", "bytes_up", "second_order"),
)
@dataclass(frozen=True)
class Report:
    """What an estimate cost, and how far to trust it.

    Attributes:
        lower: ``[]``, the norm of the mean lower gradient at the y that was used: zero
            at a solution of the lower level. NaN if no round asked for it.
        linear: ``[]``, ``|H v - b| / |b|`` of the linear system, NaN if none is solved.
        unfinished: ``[]``, ``-<v, grad_y g>``: to first order, how much the upper value
            would change if the lower level were solved to its end. NaN without ``v``.
        indefinite: ``[]`` bool, whether conjugate gradients met curvature <= 0.
        growing: ``[]`` bool, whether the terms of a Neumann series grew, as they do
            where the step is 2 / L or more, or the Hessian is indefinite.
        target: The truth it aims at: the bilevel hypergradient, which it reaches where
            ``lower`` and ``linear`` are zero and nothing is local; or that of the map
            that the rounds are. The estimator's ``bias`` says what keeps it away.
        rounds: Communication rounds, of ``fad.plan``.
        bytes_down: What each client that takes part in every round receives.
        bytes_up: What it sends.
        second_order: Products with a client's second derivatives, each about the work
            of one gradient; inside a differentiated solver, one per local step.
    """

    lower: jax.Array
    linear: jax.Array
    unfinished: jax.Array
    indefinite: jax.Array
    growing: jax.Array
    target: Target
    rounds: int
    bytes_down: int
    bytes_up: int
    second_order: int


class Trust(NamedTuple):
    """The part of a report that is computed; what is not said is unknown."""

    lower: Any = jnp.nan
    linear: Any = jnp.nan
    unfinished: Any = jnp.nan
    indefinite: Any = False
    growing: Any = False


class BilevelEstimate(NamedTuple):
    """What an estimator says of a bilevel problem at x.

    Attributes:
        value: ``[]``, ``mean_i f_i(x, y)`` at the y that the estimate is of.
        hypergradient: Of x's structure, shapes and dtypes.
        state: What the next estimate goes on from; ``state.y`` is the lower variable.
        report: A ``Report``.
    """

    value: jax.Array
    hypergradient: Any
    state: Any
    report: Report


class BilevelEstimator(NamedTuple):
    """An estimator of a hypergradient, as a record of pure functions.

    ``init(x, y, cohort) -> state`` begins at a lower variable ``y``; ``estimate(x,
    state, cohorts, key) -> BilevelEstimate`` runs the lower level on from there and
    differentiates. ``cohorts`` is ``fad.AtClients(Split(...))`` with leaves
    ``[k, n, *]``: round j is with cohort j mod k. With k = 1 the same clients take part
    in all rounds; ``draws`` cohorts give each step of the estimate one of its own.
    ``key`` is for random losses and random estimators, otherwise it may be None. Both
    functions may be jitted and differentiated.

    Clients are stateless: what they need, x and y included, is sent in every round, and
    counts in the report.
    """

    init: Callable[[Any, Any, Any], Any]
    estimate: Callable[[Any, Any, Any, Any], BilevelEstimate]
    target: Target
    bias: str
    draws: int


def make_estimator(
    call: str,
    init: Callable[..., Any],
    run: Callable[..., tuple[Any, Any, Any, Trust]],
    *,
    target: Target,
    bias: str,
    draws: int,
    second_order: int,
) -> BilevelEstimator:
    """Turn ``run(x, state, cohorts, key) -> (value, gradient, state, trust)`` into one.

    The report's costs are those of ``fad.plan`` of ``run``, once per shape.
    """
    costs: dict[Any, Any] = {}

    def cost_of(*args: Any) -> Any:
        shapes = jax.tree.map(jax.typeof, args)
        leaves, structure = jax.tree.flatten(shapes)
        found = (structure, tuple(map(str, leaves)))
        if found not in costs:
            costs[found] = plan(run)(*jax.tree.map(_shape, args)).cost()
        return costs[found]

    def estimate(x: Any, state: Any, cohorts: Any, key: Any) -> BilevelEstimate:
        check_cohorts(call, cohorts)
        x = check_theta(call, x, name="x")
        cost = cost_of(x, state, cohorts, key)
        value, gradient, state, trust = run(x, state, cohorts, key)
        gradient = jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, x)
        computed = Trust(*(jnp.asarray(t) for t in trust))
        report = Report(
            *computed,
            target=target,
            rounds=cost.rounds,
            bytes_down=cost.bytes_down,
            bytes_up=cost.bytes_up,
            second_order=second_order,
        )
        return BilevelEstimate(value, gradient, state, report)

    def begin(x: Any, y: Any, cohort: Any) -> Any:
        check_theta(call, x, name="x")
        return init(x, check_theta(call, y, name="y"), cohort)

    return BilevelEstimator(begin, estimate, target, bias, draws)


def _shape(x: Any) -> Any:
    return jax.ShapeDtypeStruct(jax.numpy.shape(x), jax.numpy.result_type(x))
