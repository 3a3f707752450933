"""A jaxpr as one flat list of equations, calls entered.

Sums that stand in different calls can then share a sweep over the clients, and every
use of a value is in sight. Equations whose results nobody needs are gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from fad._compat import (
    ClosedJaxpr,
    JaxprEqn,
    Literal,
    bind,
    call_body,
    jaxpr_as_fun,
    linear_solve,
    make_jaxpr,
    open_jaxpr,
    run_jaxprs,
    scan_parts,
)
from fad.plan._graph import FEDERATED


@dataclass(eq=False, repr=False)
class Ref:
    """One value of a program: a variable after inlining.

    Attributes:
        aval: Its type.
        value: The value itself, where it is a literal or a constant.
        uses: The equations that read it, with the operand's position.
        output: Whether the program returns it.
        client: Whether the clients make it (see ``_placed``), and ``n`` of them.
        level: The number of sums upstream.
        depth: For a client value, the scans whose stack it is.
        keep: Whether it is stored as an array ``[n, *s]`` when it is made.
        cheap: Whether it is a server value, repeated: never worth storing.
        crossing: Whether it is remade from client values of earlier levels.
        pinned: Whether the user asked to store it (``remat=False``).
    """

    aval: Any
    value: Any = None
    uses: list[tuple["Eqn", int]] = field(default_factory=list)
    output: bool = False
    client: bool = False
    n: int = 0
    level: int = 0
    depth: int = 0
    keep: bool = False
    cheap: bool = False
    crossing: bool = False
    pinned: bool = False


@dataclass(eq=False, repr=False)
class Eqn:
    """One equation over ``Ref``s.

    Attributes:
        name: The primitive's name; ``barrier`` where a checkpoint's inputs wait for
            each other.
        eqn: JAX's equation (its primitive and parameters).
        ins: Operands.
        outs: Results.
        federated: Whether there is communication inside.
    """

    name: str
    eqn: JaxprEqn
    ins: list[Ref]
    outs: list[Ref]
    federated: bool = False


@dataclass(eq=False, repr=False)
class Flat:
    """A flat program: inputs, equations in order, outputs."""

    inputs: list[Ref]
    eqns: list[Eqn]
    outputs: list[Ref]


def flatten(closed: Any) -> Flat:
    """Inline the calls of a jaxpr, drop dead equations, and note every use."""
    jaxpr, consts = open_jaxpr(closed)
    inputs = [Ref(v.aval) for v in jaxpr.invars]
    eqns: list[Eqn] = []
    outputs = _inline(eqns, jaxpr, consts, inputs)
    flat = Flat(inputs, _live(eqns, outputs), outputs)
    for eqn in flat.eqns:
        for i, ref in enumerate(eqn.ins):
            ref.uses.append((eqn, i))
    for ref in outputs:
        ref.output = True
    return flat


def run_flat(flat: Flat, args: Sequence[Any]) -> list[Any]:
    """Run a flat program on these values."""
    env = {id(ref): x for ref, x in zip(flat.inputs, args, strict=True)}

    def read(ref: Ref) -> Any:
        return env[id(ref)] if ref.value is None else ref.value

    for eqn in flat.eqns:
        outs = run_eqn(eqn, [read(ref) for ref in eqn.ins])
        env.update((id(ref), x) for ref, x in zip(eqn.outs, outs, strict=True))
    return [read(ref) for ref in flat.outputs]


def run_eqn(eqn: Eqn, args: Sequence[Any]) -> list[Any]:
    """Run one equation on these values."""
    if eqn.name == "barrier":
        return list(jax.lax.optimization_barrier(list(args)))
    return bind(eqn.eqn, args)


def is_federated(jaxpr: Any) -> bool:
    """Say whether a jaxpr communicates at any depth."""
    return any(
        eqn.primitive.name in FEDERATED or any(map(is_federated, run_jaxprs(eqn)))
        for eqn in open_jaxpr(jaxpr)[0].eqns
    )


def _inline(
    eqns: list[Eqn], jaxpr: Any, consts: Sequence[Any], ins: Sequence[Ref]
) -> list[Ref]:
    env = dict(zip(jaxpr.invars, ins, strict=True))
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = Ref(var.aval, const)

    def read(atom: Any) -> Ref:
        return Ref(atom.aval, atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        outs = _equation(eqns, eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(eqns: list[Eqn], eqn: JaxprEqn, ins: list[Ref]) -> list[Ref]:
    scan = scan_parts(eqn) if eqn.primitive.name == "scan" else None
    if scan and scan.length == 1 and not is_federated(scan.body):
        return _inline(eqns, *open_jaxpr(_once(eqn)), ins)
    body, args = _body(eqn, ins)
    if body is not None:
        if eqn.params.get("differentiated") and eqn.params.get("prevent_cse", True):
            args = _barrier(eqns, eqn, args)
        return _inline(eqns, *open_jaxpr(body), args)
    outs = [Ref(v.aval) for v in eqn.outvars]
    name = eqn.primitive.name
    federated = name in FEDERATED or any(map(is_federated, run_jaxprs(eqn)))
    eqns.append(Eqn(name, eqn, ins, outs, federated))
    return outs


def _body(eqn: JaxprEqn, ins: list[Ref]) -> tuple[Any, list[Ref]]:
    """Return what a call runs, and on which operands.

    A linear solve runs its solver, a cond whose branch is known that branch.

    No derivative is taken after this pass, so custom derivative rules have done their
    work.
    """
    if eqn.primitive.name == "custom_linear_solve":
        return linear_solve(eqn, ins)
    if eqn.primitive.name == "cond" and ins[0].value is not None:
        branches = eqn.params["branches"]
        return branches[min(max(int(ins[0].value), 0), len(branches) - 1)], ins[1:]
    body = call_body(eqn)
    if body is not None and len(open_jaxpr(body)[0].invars) == len(ins):
        return body, ins
    return None, ins


def _once(eqn: JaxprEqn) -> ClosedJaxpr:
    """Return a scan of one iteration without the loop."""
    scan = scan_parts(eqn)
    first_x = scan.num_consts + scan.num_carry

    def run(*args):
        xs = [jax.lax.squeeze(x, (0,)) for x in args[first_x:]]
        outs = jaxpr_as_fun(scan.body)(*args[:first_x], *xs)
        ys = [jax.lax.expand_dims(y, (0,)) for y in outs[scan.num_carry :]]
        return [*outs[: scan.num_carry], *ys]

    avals: list[Any] = [v.aval for v in eqn.invars]
    return make_jaxpr(run, avals)


def _barrier(eqns: list[Eqn], eqn: JaxprEqn, ins: list[Ref]) -> list[Ref]:
    outs = [Ref(ref.aval) for ref in ins]
    eqns.append(Eqn("barrier", eqn, list(ins), outs))
    return outs


def _live(eqns: list[Eqn], outputs: Sequence[Ref]) -> list[Eqn]:
    wanted, kept = set(map(id, outputs)), []
    for eqn in reversed(eqns):
        effects = getattr(eqn.eqn, "effects", None) and eqn.name != "barrier"
        if effects or any(id(ref) in wanted for ref in eqn.outs):
            wanted.update(map(id, eqn.ins))
            kept.append(eqn)
    return kept[::-1]


def shape_of(ref: Ref) -> tuple[int, ...]:
    """Return the shape of a value; ``()`` for what is no array."""
    return getattr(ref.aval, "shape", ())
