"""What of the lower losses does not depend on y: computed once, kept by the clients."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from fad._compat import ClosedJaxpr, JaxprEqn, Literal, Var, bind
from fad.estimators._bilevel import (
    Bilevel,
    Loss,
    Split,
    check_cohorts,
    check_problem,
)
from fad.placement import AtClients, program
from fad.primitives import map as fad_map
from fad.solvers._clients import client

# What a value may depend on.
_X, _Y, _ROWS = "x", "y", "rows"


class _Prepared(NamedTuple):
    """A batch's examples, and what was computed from them and from x."""

    examples: Any
    values: list[jax.Array]


def hoist(
    problem: Bilevel, x: Any, y: Any, cohorts: AtClients[Split]
) -> tuple[Bilevel, AtClients[Split]]:
    """Compute once what of the lower losses depends on x and the examples, not on y.

    While x stands still, a cohort meets its lower losses at many y. What they make of x
    and the examples alone, such as what all layers but the last one give, the clients
    compute once and keep, and x is sent to them once. That takes memory for each client
    of the cohort. ``aid`` and ``aggitd`` do it where told to ``keep``.

    What is kept has a row per example. Nothing is kept of what a function with a jit of
    its own computes, if some of it depends on y.

    Args:
        problem: The problem.
        x: The upper variable.
        y: A lower variable, for its shapes.
        cohorts: ``[k, n, *]``, the clients' ``Split``, stacked over rounds.

    Returns:
        A problem and its cohorts. As functions of y the lower losses are those of the
        problem that was given, at this x and on these cohorts alone. Derivatives by x
        are to be taken of the problem that was given; through what the clients keep
        they are right, if ``hoist`` is inside what is differentiated.

    Raises:
        FadError: If the problem is none, or the cohorts are not stacked.

    Example:
        A layer x, and on it a layer y:

        >>> import jax, jax.numpy as jnp, fad
        >>> problem = fad.estimators.Bilevel(
        ...     upper=lambda x, y, e: (jnp.tanh(e["a"] @ x) @ y - e["b"]) ** 2,
        ...     lower=lambda x, y, e: (jnp.tanh(e["a"] @ x) @ y - e["b"]) ** 2,
        ... )
        >>> rows = {"a": jnp.ones((1, 3, 1, 4, 5)), "b": jnp.zeros((1, 3, 1, 4))}
        >>> mask, client = jnp.full((1, 3, 1, 4), True), jnp.arange(3)[None]
        >>> batches = fad.local.Batches(rows, mask, client)
        >>> cohorts = fad.AtClients(fad.estimators.Split(batches, batches))
        >>> x, y = jnp.ones((5, 2)), jnp.ones(2)
        >>> kept = fad.estimators.hoist(problem, x, y, cohorts)[1]
        >>> kept.unsafe_gather().lower.examples.values[0].shape  # tanh(a x)
        (1, 3, 1, 4, 2)
    """
    call = "fad.estimators.hoist"
    check_problem(call, problem)
    check_cohorts(call, cohorts)
    keys = [jax.eval_shape(lambda: jax.random.key(0))] if problem.random else []
    rows = cohorts.unsafe_gather().lower.examples
    kept = _kept(problem.lower, x, y, jax.tree.map(lambda a: a[0, 0, 0], rows), keys)
    if not kept.places:
        return problem, cohorts

    @program
    def prepare(_: None, cohort: AtClients[Split]) -> tuple[None, AtClients[Split]]:
        def at_client(split: Split) -> Split:
            lower = split.lower
            clean = client(lower, None, problem.weighting).batches

            def values(rows: Any) -> list[jax.Array]:
                trace = _Trace.of(problem.lower, x, y, rows, keys)
                wanted = [trace.mine[i] for i in kept.places]
                return trace.evaluate((x, y, rows, keys), {}, wanted)

            found = jax.vmap(values)(clean.examples)
            examples = _Prepared(lower.examples, found)
            return split._replace(lower=lower._replace(examples=examples))

        return None, fad_map(at_client, cohort)

    def rest(x: Any, y: Any, prepared: _Prepared, *key: jax.Array) -> jax.Array:
        trace = _Trace.of(problem.lower, x, y, prepared.examples, key)
        known = {}
        if len(trace.mine) == kept.total:  # else its equations depend on the batch
            mine = [trace.mine[i] for i in kept.places]
            known = dict(zip(mine, prepared.values, strict=True))
        args = (x, y, prepared.examples, key)
        return trace.evaluate(args, known, trace.closed.jaxpr.outvars)[0]

    _, prepared = jax.lax.scan(prepare, None, cohorts)
    return problem._replace(lower=rest), prepared


def hoist_if(keep: bool, problem: Bilevel, x: Any, y: Any, cohorts: Any) -> Any:
    """Hoist, or return both as they came."""
    return hoist(problem, x, y, cohorts) if keep else (problem, cohorts)


class _Trace(NamedTuple):
    """A lower loss as equations.

    Attributes:
        closed: ``lower`` on the leaves of ``(x, y, examples, key)``.
        mine: What its equations make of x and the examples alone, in order.
        used: Those of them that others need.
    """

    closed: ClosedJaxpr
    mine: list[Var]
    used: set[Var]

    @classmethod
    def of(cls, lower: Loss, x: Any, y: Any, rows: Any, keys: Sequence[Any]) -> Any:
        """Trace a loss, and find what each of its values depends on."""
        closed = jax.make_jaxpr(lower)(x, y, rows, *keys)
        labels = [_X, _Y, _ROWS, _Y]  # A random key changes from step to step, too.
        sizes = [len(jax.tree.leaves(arg)) for arg in (x, y, rows, list(keys))]
        flat = [{k} for k, n in zip(labels, sizes, strict=True) for _ in range(n)]
        jaxpr, mine, used = closed.jaxpr, [], set()
        on = dict(zip(jaxpr.invars, flat, strict=True))
        for eqn in () if closed.effects else jaxpr.eqns:
            own = {a for a in eqn.invars if isinstance(a, Var)}
            label = set().union(*(on.get(a, set()) for a in own))
            on |= dict.fromkeys(eqn.outvars, label)
            if label == {_X, _ROWS}:
                mine += eqn.outvars
            else:
                used |= own
        used |= {a for a in jaxpr.outvars if isinstance(a, Var)}
        return cls(closed, mine, used.intersection(mine))

    def evaluate(
        self, args: Any, known: dict[Var, Any], wanted: Sequence[Any]
    ) -> list[Any]:
        """Return the values of variables; no more is computed than they need."""
        jaxpr = self.closed.jaxpr
        found = dict(zip(jaxpr.constvars, self.closed.consts, strict=True))
        found |= dict(zip(jaxpr.invars, jax.tree.leaves(args), strict=True)) | known

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else found[atom]

        for eqn in _needed(jaxpr.eqns, wanted, found):
            outs = bind(eqn, [read(atom) for atom in eqn.invars])
            found |= dict(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in wanted]


class _Kept(NamedTuple):
    """Which of a trace's values are kept: ``mine[i]`` for i in places, of a total."""

    places: list[int]
    total: int


def _kept(lower: Loss, x: Any, y: Any, rows: Any, keys: Sequence[Any]) -> _Kept:
    """Choose the values that have a row for each example, whatever their number."""

    def trace(more: int) -> _Trace:
        def shape(a: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((a.shape[0] + more, *a.shape[1:]), a.dtype)

        return _Trace.of(lower, x, y, jax.tree.map(shape, rows), keys)

    def length(a: Any) -> int:
        return a.aval.shape[0] if a.aval.shape else 0

    one, other = trace(0), trace(1)
    batch = jax.tree.leaves(rows)[0].shape[0]
    places = [
        i
        for i, (a, b) in enumerate(zip(one.mine, other.mine, strict=False))
        if a in one.used and (length(a), length(b)) == (batch, batch + 1)
    ]
    same = len(one.mine) == len(other.mine)
    return _Kept(places if same else [], len(one.mine))


def _needed(
    eqns: Sequence[JaxprEqn], wanted: Iterable[Any], found: dict[Var, Any]
) -> list[JaxprEqn]:
    """Return the equations that what is wanted depends on, in order."""
    open_ = {a for a in wanted if isinstance(a, Var) and a not in found}
    needed = []
    for eqn in reversed(eqns):
        if open_.isdisjoint(eqn.outvars):
            continue
        needed.append(eqn)
        open_ |= {a for a in eqn.invars if isinstance(a, Var) and a not in found}
    return needed[::-1]
