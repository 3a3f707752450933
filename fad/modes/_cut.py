"""Cutting a program before its last round: ``f(x) = after(before(x), x)``.

``after`` holds the last round, from the broadcasts that start it to the outputs, and
``before`` everything else. What crosses the cut lives at the server, so mixed mode can
treat the two halves by different modes and join them there.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fad._compat import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    bind,
    dce,
    depends_on,
    inner_call,
    make_jaxpr,
)
from fad._errors import PlanError
from fad.plan._graph import Graph
from fad.plan._schedule import schedule
from fad.plan._values import Value

_WHERE = "mixed mode does not apply"
SENT = ("fad_broadcast", "fad_select")  # what the clients are sent
SUMS = ("fad_sum", "fad_deselect")  # what the server adds up of theirs


class Cut(NamedTuple):
    """A program in two halves, over flat lists of arrays.

    Attributes:
        before: ``inputs -> crossing``, the rounds before the last.
        after: ``(crossing, inputs) -> outputs``, the last round.
        moving: Which crossing values depend on the differentiated inputs.
        closed: The program, its calls written out.
        late: The positions of the last round's equations and of all that follow.
        crossing: The variables that cross.
        places: Where each variable lives.
    """

    before: Callable[[Sequence[Any]], list[Any]]
    after: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    moving: list[bool]
    closed: ClosedJaxpr
    late: set[int]
    crossing: list[Any]
    places: dict[Any, Value]


def cut(closed: ClosedJaxpr, values: Sequence[Value], live: Sequence[bool]) -> Cut:
    """Cut a program before its last round.

    Args:
        closed: The program.
        values: Where its inputs live.
        live: Which inputs are differentiated.

    Raises:
        PlanError: If the last round cannot be separated: it stands inside a loop, or a
            client value that depends on the inputs crosses into it.
    """
    closed = _inlined(closed)
    jaxpr = closed.jaxpr
    late, env = _late(closed, values)
    crossing = _crossing(jaxpr, late)
    moving = _moving(closed, late, live)
    for v in crossing:
        if v in moving and env[v].at_clients:
            raise PlanError(
                f"{_WHERE}: the last round uses a client value, {env[v].text} per "
                "client, that depends on the inputs, so the halves do not meet at the "
                "server. Use mode='forward' or mode='reverse'."
            )

    def run(is_late: bool, args: Sequence[Any], known: dict, outs: Sequence[Any]):
        env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        env.update(known)
        for i, eqn in enumerate(jaxpr.eqns):
            if (i in late) == is_late:
                made = bind(eqn, [read(env, v) for v in eqn.invars])
                env.update(zip(eqn.outvars, made, strict=True))
        return [read(env, v) for v in outs]

    return Cut(
        before=lambda args: run(False, args, {}, crossing),
        after=lambda crossed, args: run(
            True, args, dict(zip(crossing, crossed, strict=True)), jaxpr.outvars
        ),
        moving=[v in moving for v in crossing],
        closed=closed,
        late=late,
        crossing=crossing,
        places=env,
    )


def read(env: dict[Any, Any], atom: Any) -> Any:
    """Return the value of a variable or literal."""
    return atom.val if isinstance(atom, Literal) else env[atom]


def variables(atoms: Sequence[Any]) -> list[Any]:
    """Return the atoms that are no literals."""
    return [v for v in atoms if not isinstance(v, Literal)]


def _inlined(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Write out the calls at the top level, and drop dead equations."""

    def run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            ins = [read(env, v) for v in eqn.invars]
            inner = inner_call(eqn) if eqn.primitive.name in ("jit", "pjit") else None
            if inner is None or inner.constvars:
                outs = bind(eqn, ins)
            else:
                outs = run(inner, (), ins)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(env, v) for v in jaxpr.outvars]

    flat = make_jaxpr(
        lambda *args: run(closed.jaxpr, closed.consts, args), closed.in_avals
    )
    return dce(flat, [True] * len(flat.out_avals), keep_inputs=True)[0]


def _late(closed: ClosedJaxpr, values: Sequence[Value]) -> tuple[set[int], dict]:
    """Return the positions of the last round's equations and of all that follow."""
    graph, eqns = Graph(None), closed.jaxpr.eqns
    env, outputs = graph.follow(closed, values)
    rounds = len(schedule(graph.steps, outputs).rounds())
    late = {
        i
        for i, e in enumerate(eqns)
        if e.primitive.name in SUMS and env[e.outvars[0]].level == rounds
    }
    if not late:
        raise PlanError(
            f"{_WHERE}: the last round stands inside a loop, a branch, a linear solve "
            "or a checkpoint, or there is none, so it cannot be told apart from the "
            "rounds before it. Take it out, or use mode='forward' or mode='reverse'."
        )
    late |= _clients_side(eqns, late, env, rounds - 1)
    reached = {v for i in late for v in eqns[i].outvars}
    for i, eqn in enumerate(eqns):
        if any(v in reached for v in variables(eqn.invars)):
            late.add(i)
            reached.update(eqn.outvars)
    return late, env


def _clients_side(
    eqns: Sequence[JaxprEqn], sums: set[int], env: dict[Any, Value], last: int
) -> set[int]:
    """Return what is sent and done for the last round's sums alone."""
    late, by_late, by_early = set(), set(), set()
    for i in reversed(range(len(eqns))):
        outs, ins = eqns[i].outvars, variables(eqns[i].invars)
        sent = eqns[i].primitive.name in SENT  # at any time, so in this round too
        here = sent or all(_in_round(env[v], last) for v in outs)
        wanted = any(v in by_late for v in outs)
        if i in sums or (here and wanted and not any(v in by_early for v in outs)):
            late.add(i)
            by_late.update(ins)
        else:
            by_early.update(ins)
    return late


def _in_round(value: Value, level: int) -> bool:
    return value.at_clients and (
        value.kind == "sent" or value.level == level or value.level < 0
    )


def _crossing(jaxpr: Jaxpr, late: set[int]) -> list[Any]:
    """Return what the last round reads of the rounds before it."""
    made = {v for i, e in enumerate(jaxpr.eqns) if i not in late for v in e.outvars}
    read = [v for i in sorted(late) for v in variables(jaxpr.eqns[i].invars)]
    read += variables(jaxpr.outvars)
    return [v for v in dict.fromkeys(read) if v in made]


def _moving(closed: ClosedJaxpr, late: set[int], live: Sequence[bool]) -> set[Any]:
    """Return the early values that depend on the live inputs."""
    moving = {v for v, on in zip(closed.jaxpr.invars, live, strict=True) if on}
    for i, eqn in enumerate(closed.jaxpr.eqns):
        ins = [not isinstance(v, Literal) and v in moving for v in eqn.invars]
        if i in late or not any(ins):
            continue
        inner = inner_call(eqn)
        outs = depends_on(inner, ins) if inner else [True] * len(eqn.outvars)
        moving.update(v for v, on in zip(eqn.outvars, outs, strict=True) if on)
    return moving
