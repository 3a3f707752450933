"""Follow every axis of every value through a jaxpr."""

from collections.abc import Sequence
from typing import Any

from fad._compat import Jaxpr, JaxprEqn, Literal, call_body, open_jaxpr, scan_parts
from fad.submodels._atoms import Value, axis, pin, value
from fad.submodels._rules import follow, same, shape_of, unknown


def trace(jaxpr: Jaxpr, ins: Sequence[Value]) -> Sequence[Value]:
    """Return the axes of a jaxpr's outputs; its constants are pinned."""
    env: dict[Any, Value] = {}

    def read(var: Any) -> Value:
        known = not isinstance(var, Literal) and var in env
        return env[var] if known else value(shape_of(var), pinned=True)

    env.update((var, read(var)) for var in jaxpr.constvars)
    env.update(zip(jaxpr.invars, ins, strict=True))
    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(var) for var in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _equation(eqn: JaxprEqn, ins: list[Value]) -> Sequence[Value]:
    body = call_body(eqn)
    if body is not None:
        return trace(open_jaxpr(body)[0], ins)
    if eqn.primitive.name == "scan":
        return _scan(eqn, ins)
    if eqn.primitive.name == "cond":
        jaxprs = [open_jaxpr(branch)[0] for branch in eqn.params["branches"]]
        outs = [trace(jaxpr, ins[1:]) for jaxpr in jaxprs]
        return [same(branches) for branches in zip(*outs, strict=True)]
    return follow(eqn, ins) if eqn.outvars else unknown(eqn, ins)


def _scan(eqn: JaxprEqn, ins: list[Value]) -> Sequence[Value]:
    """Each turn's state has the axes of the one before; time is pinned."""
    parts = scan_parts(eqn)
    start = parts.num_consts + parts.num_carry
    pin(*(stacked[0] for stacked in ins[start:]))
    rows = [stacked[1:] for stacked in ins[start:]]
    outs = trace(open_jaxpr(parts.body)[0], [*ins[:start], *rows])
    carries = zip(ins[parts.num_consts : start], outs[: parts.num_carry], strict=True)
    for before_after in carries:
        same(before_after)
    time = axis(parts.length, pinned=True)
    stacks = [[time, *row] for row in outs[parts.num_carry :]]
    return [*outs[: parts.num_carry], *stacks]
