"""Follow every axis of every value through a jaxpr."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fad._compat import (
    Jaxpr,
    JaxprEqn,
    Literal,
    call_body,
    open_jaxpr,
    run_jaxprs,
    scan_parts,
)
from fad.plan._flops import eqn_flops
from fad.submodels._atoms import Axis, Value, axis, pin, value
from fad.submodels._rules import follow, same, shape_of, unknown


class Product(NamedTuple):
    """A matrix product or convolution: its operations, and the axes that make them."""

    flops: int
    axes: tuple[Axis, ...]


def trace(jaxpr: Jaxpr, ins: Sequence[Value], seen: list[Product]) -> Sequence[Value]:
    """Return the axes of a jaxpr's outputs; its constants are pinned.

    The products that it computes are added to ``seen``: those of a loop times its
    turns, those of a condition's dearest branch.
    """
    env: dict[Any, Value] = {}

    def read(var: Any) -> Value:
        known = not isinstance(var, Literal) and var in env
        return env[var] if known else value(shape_of(var), pinned=True)

    env.update((var, read(var)) for var in jaxpr.constvars)
    env.update(zip(jaxpr.invars, ins, strict=True))
    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(var) for var in eqn.invars], seen)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _equation(eqn: JaxprEqn, ins: list[Value], seen: list[Product]) -> Sequence[Value]:
    body = call_body(eqn)
    if body is not None:
        return trace(open_jaxpr(body)[0], ins, seen)
    if eqn.primitive.name == "scan":
        return _scan(eqn, ins, seen)
    if eqn.primitive.name == "cond":
        return _cond(eqn, ins, seen)
    _see(eqn, ins, seen)
    return follow(eqn, ins) if eqn.outvars else unknown(eqn, ins)


def _see(eqn: JaxprEqn, ins: list[Value], seen: list[Product]) -> None:
    """Note a product; of what is not followed, those inside, of pinned axes."""
    if eqn.primitive.name == "dot_general":
        (_, right), (_, batch) = eqn.params["dimension_numbers"]
        free = [a for d, a in enumerate(ins[1]) if d not in (*right, *batch)]
        seen.append(Product(eqn_flops(eqn), (*ins[0], *free)))
    elif eqn.primitive.name == "conv_general_dilated":
        images = ins[0][eqn.params["dimension_numbers"].lhs_spec[0]]
        seen.append(Product(eqn_flops(eqn), (images, *ins[1])))
    for inner in run_jaxprs(eqn):
        rows = [value(shape_of(var), pinned=True) for var in inner.invars]
        trace(inner, rows, seen)


def _cond(eqn: JaxprEqn, ins: list[Value], seen: list[Product]) -> Sequence[Value]:
    dearest: list[Product] = []
    outs = []
    for branch in eqn.params["branches"]:
        of_branch: list[Product] = []
        outs.append(trace(open_jaxpr(branch)[0], ins[1:], of_branch))
        dearest = max(dearest, of_branch, key=lambda all: sum(p.flops for p in all))
    seen += dearest
    return [same(branches) for branches in zip(*outs, strict=True)]


def _scan(eqn: JaxprEqn, ins: list[Value], seen: list[Product]) -> Sequence[Value]:
    """Each turn's state has the axes of the one before; time is pinned."""
    parts = scan_parts(eqn)
    start = parts.num_consts + parts.num_carry
    pin(*(stacked[0] for stacked in ins[start:]))
    rows = [stacked[1:] for stacked in ins[start:]]
    of_turn: list[Product] = []
    outs = trace(open_jaxpr(parts.body)[0], [*ins[:start], *rows], of_turn)
    seen += [Product(parts.length * flops, axes) for flops, axes in of_turn]
    carries = zip(ins[parts.num_consts : start], outs[: parts.num_carry], strict=True)
    for before_after in carries:
        same(before_after)
    time = axis(parts.length, pinned=True)
    stacks = [[time, *row] for row in outs[parts.num_carry :]]
    return [*outs[: parts.num_carry], *stacks]
