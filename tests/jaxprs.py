"""Reading jaxprs: which equations there are, and at which placement values live."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax

import fad
from fad import _compat

SERVER, CLIENT, CONSTANT = "server", "client", "constant"
WIRE = ("fad_broadcast", "fad_map", "fad_sum")
SLICES = ("fad_select", "fad_deselect")
# What a derivative may do to client values outside a map: add cotangents up.
ELEMENTWISE = {"add_any", "copy", "copy_p"}


def trace(fn: Any, *args: Any) -> _compat.ClosedJaxpr:
    """Return the jaxpr of ``fn`` without equations that no output needs."""
    closed = jax.make_jaxpr(fn)(*args)
    live, _ = _compat.dce(closed, [True] * len(closed.out_avals), keep_inputs=True)
    return live


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield all equations of the program, inner ones too, but not a client's own."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        if eqn.primitive.name != "fad_map":
            for inner in _compat.jaxprs_in_params(eqn.params):
                yield from equations(inner)


def wire(fn: Any, *args: Any) -> tuple[int, int, int]:
    """Return the numbers of broadcasts, maps and sums of ``fn``'s live program."""
    return count(WIRE, fn, *args)  # type: ignore[return-value]


def count(names: Sequence[str], fn: Any, *args: Any) -> tuple[int, ...]:
    """Return how often each primitive stands in ``fn``'s live program."""
    counts = Counter(e.primitive.name for e in equations(trace(fn, *args)))
    return tuple(counts[name] for name in names)


def maps(fn: Any, *args: Any) -> list[Any]:
    """Return the equations ``fad_map`` of ``fn``'s live program."""
    found = equations(trace(fn, *args))
    return [e for e in found if e.primitive.name == "fad_map"]


def check_closed(fn: Any, *args: Any) -> list[str]:
    """Assert that only fad's primitives join server and clients; return the outputs'.

    The inputs' placements are read off the ``AtClients`` among ``args``.
    """
    is_marked = lambda v: isinstance(v, fad.AtClients)  # noqa: E731
    placements = []
    for leaf in jax.tree.leaves(args, is_leaf=is_marked):
        count = len(jax.tree.leaves(leaf))
        placements += [CLIENT if is_marked(leaf) else SERVER] * count
    return _flow(trace(fn, *args).jaxpr, placements)


def _flow(jaxpr: Any, placements: Sequence[str]) -> list[str]:
    where = dict.fromkeys(jaxpr.constvars, SERVER)
    where.update(zip(jaxpr.invars, placements, strict=True))

    def read(atom):
        return CONSTANT if isinstance(atom, _compat.Literal) else where[atom]

    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(v) for v in eqn.invars])
        where.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(eqn: Any, ins: list[str]) -> list[str]:
    name, num_out = eqn.primitive.name, len(eqn.outvars)
    if name == "fad_broadcast":
        assert CLIENT not in ins, "a client value is broadcast"
        return [CLIENT]
    if name in ("fad_map", "fad_sum"):
        assert SERVER not in ins, f"a server value enters {name}"
        return [CLIENT if name == "fad_map" else SERVER] * num_out
    if name == "fad_select":
        assert ins[0] != CLIENT, "slices are taken from a client value"
        assert SERVER not in ins[1:], "server values are keys"
        return [CLIENT]
    if name == "fad_deselect":
        assert SERVER not in ins, "a server value enters fad_deselect"
        return [SERVER]
    if name == "scan":
        return _scan(eqn, ins)
    if name == "while":
        return _while(eqn, ins)
    if name == "cond":
        assert ins[0] != CLIENT, "a client value chooses the branch"
        outs = [_flow(_inner(b), ins[1:]) for b in eqn.params["branches"]]
        return [_join(column) for column in zip(*outs, strict=True)]
    if inner := _compat.inner_call(eqn):
        return _flow(inner, ins)
    if CLIENT in ins:
        assert name in ELEMENTWISE, f"{name} acts on a client value: {eqn}"
        assert SERVER not in ins, f"{name} mixes placements: {eqn}"
        return [CLIENT] * num_out
    return [SERVER if SERVER in ins else CONSTANT] * num_out


def _inner(jaxpr: Any) -> Any:
    return _compat.open_jaxpr(jaxpr)[0]


def _join(placements: Sequence[str]) -> str:
    known = set(placements) - {CONSTANT}
    assert len(known) < 2, "a value lives at both placements"
    return known.pop() if known else CONSTANT


def _scan(eqn: Any, ins: list[str]) -> list[str]:
    parts = _compat.scan_parts(eqn)
    consts, carry, inner = parts.num_consts, parts.num_carry, parts.body.jaxpr
    while True:  # until the carry's placements no longer change
        outs = _flow(inner, ins)
        joined = [
            _join(p) for p in zip(ins[consts:][:carry], outs[:carry], strict=True)
        ]
        if joined == ins[consts : consts + carry]:
            return joined + outs[carry:]
        ins = ins[:consts] + joined + ins[consts + carry :]


def _while(eqn: Any, ins: list[str]) -> list[str]:
    cond, body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = ins[cond + body :]
    while True:
        test = _flow(_inner(eqn.params["cond_jaxpr"]), ins[:cond] + carry)
        assert CLIENT not in test, "a client value ends the loop"
        outs = _flow(_inner(eqn.params["body_jaxpr"]), ins[cond : cond + body] + carry)
        joined = [_join(p) for p in zip(carry, outs, strict=True)]
        if joined == carry:
            return joined
        carry = joined
