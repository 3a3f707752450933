"""Following client axes through a program, equation by equation.

A value is at the clients where one of its axes is a client axis. An equation must hand
each client axis on; those that take it away are ``fad_sum`` and ``fad_deselect``. Where
any other does, ``lost`` is called: the checker raises there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fad._compat import (
    JaxprEqn,
    Literal,
    call_body,
    linear_solve,
    open_jaxpr,
    scan_parts,
)
from fad.placement import GATHERED
from fad.plan._check_parts import cut, takes_one, union
from fad.plan._check_rules import (
    HOST,
    IDENTITIES,
    has_rule,
    holds,
    leaves_the_device,
    moved,
)
from fad.plan._check_values import (
    Placed,
    any_client,
    at_server,
    shifted,
)
from fad.plan._check_wires import FederatedEqns
from fad.plan._wires import FEDERATED


class Walk(FederatedEqns):
    """Follow a jaxpr; subclasses say what to do at the events."""

    def run(self, closed: Any, args: Sequence[Placed]) -> list[Placed]:
        """Follow a jaxpr on these inputs; return its outputs."""
        jaxpr, consts = open_jaxpr(closed)
        env: dict[Any, Placed] = dict(zip(jaxpr.invars, args, strict=True))
        env.update(zip(jaxpr.constvars, map(self.closed_over, consts), strict=False))

        def read(atom: Any) -> Placed:
            if isinstance(atom, Literal):
                return Placed(constant=True)
            return env.get(atom, Placed())

        for eqn in jaxpr.eqns:
            self.around.insert(0, eqn)
            outs = self._eqn(eqn, [read(v) for v in eqn.invars])
            here = tuple(self.around)
            outs = [v if v.made else replace(v, made=here) for v in outs]
            self.around.pop(0)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _eqn(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        name = eqn.primitive.name
        rules = {
            "fad_broadcast": self._broadcast,
            "fad_map": self._map,
            "fad_sum": self._sum,
            "fad_select": self._select,
            "fad_deselect": self._sum,
            "scan": self._scan,
            "cond": self._cond,
            "while": self._while,
            "custom_linear_solve": lambda *args: self.run(*linear_solve(*args)),
        }
        if name in rules:
            return rules[name](eqn, ins)
        body = call_body(eqn)
        if body is not None:
            return self.run(body, ins)
        if name == "name" and eqn.params["name"] == GATHERED and ins[0].axes:
            allowed = self.lost(eqn, ins[0], eqn.invars[0], "gathered")
            return ins if allowed is None else [at_server(ins, allowed)]
        if name in HOST or leaves_the_device(eqn):
            return self._host(eqn, ins)
        alarming = FEDERATED | HOST if self.depth or any_client(ins) else FEDERATED
        if holds(eqn, alarming):
            self.stuck(eqn)
        if name in IDENTITIES:
            return ins
        return self._local(eqn, ins)

    # --------------------------------------------------------------------------------
    # control flow
    # --------------------------------------------------------------------------------

    def _scan(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        scan = scan_parts(eqn)
        start = scan.num_consts + scan.num_carry
        consts, carry = ins[: scan.num_consts], ins[scan.num_consts : start]
        rows = []
        for x, atom in zip(ins[start:], eqn.invars[start:], strict=True):
            allowed = self.lost(eqn, x, atom, "scanned") if 0 in x.axes else None
            server = at_server([x], allowed) if allowed else None
            rows.append(server or replace(x, axes=shifted(x, -1)))
        while True:
            outs = self.run(scan.body, [*consts, *carry, *rows])
            new = self._joined(eqn, carry, outs[: scan.num_carry])
            if new == carry:
                break
            carry = new
        ys = outs[scan.num_carry :]
        return [*carry, *(replace(y, axes=shifted(y, 1)) for y in ys)]

    def _cond(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        index, *operands = ins
        first, *others = (self.run(b, operands) for b in eqn.params["branches"])
        for outs in others:
            first = self._joined(eqn, first, outs)
        return [replace(v, depends=v.depends | index.depends) for v in first]

    def _while(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        p = eqn.params
        tests, bodies = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        carry = ins[bodies:]
        while True:
            (go,) = self.run(p["cond_jaxpr"], [*ins[:tests], *carry])
            outs = self.run(p["body_jaxpr"], [*ins[tests:bodies], *carry])
            outs = [replace(v, depends=v.depends | go.depends) for v in outs]
            new = self._joined(eqn, carry, outs)
            if new == carry:
                return carry
            carry = new

    def _joined(
        self, eqn: JaxprEqn, first: Sequence[Placed], second: Sequence[Placed]
    ) -> list[Placed]:
        """Place what is the one value or the other, of the same shape."""
        joined = []
        for a, b in zip(first, second, strict=True):
            axes, why = union([a.axes, b.axes])
            depends, maker = a.depends | b.depends, a.maker if a.axes else b.maker
            constant = a.constant and b.constant
            v = Placed(axes, depends, constant, maker, b.made or a.made)
            if why:
                allowed = self.lost(eqn, v, None, why)
                v = v if allowed is None else at_server([v], allowed)
            joined.append(v)
        return joined

    # --------------------------------------------------------------------------------
    # all other equations
    # --------------------------------------------------------------------------------

    def _host(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        allowed = None
        for x, atom in zip(ins, eqn.invars, strict=True):
            if x.axes or (self.depth and not x.constant):
                allowed = self.hosted(eqn, x, atom) or allowed
        return [at_server(ins, allowed)] * len(eqn.outvars)

    def _local(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        moves = []
        for i, (x, atom) in enumerate(zip(ins, eqn.invars, strict=True)):
            kept = {}
            for a, labels in x.axes.items():
                place, rest = moved(eqn, i, a), labels
                if place is None:
                    place, rest = a, cut(eqn, i, a, labels)
                if rest is None:
                    allowed = self.lost(eqn, x, atom, _why(eqn, a))
                    if allowed is not None:
                        return [at_server(ins, allowed)] * len(eqn.outvars)
                else:
                    kept[place] = rest
            moves.append(kept)
        axes, why = union(moves)
        if not axes:
            return [at_server(ins)] * len(eqn.outvars)
        first = next(x for x in ins if x.axes)
        if why:
            allowed = self.lost(eqn, replace(first, axes=axes), None, why)
            if allowed is not None:
                return [at_server(ins, allowed)] * len(eqn.outvars)
        for x, atom in zip(ins, eqn.invars, strict=True):
            if not x.axes:
                self.received(eqn, x, atom, eqn.primitive.name)
        depends = frozenset().union(*(x.depends for x in ins))
        return [Placed(axes, depends, False, first.maker)] * len(eqn.outvars)


def _why(eqn: JaxprEqn, axis: int) -> str:
    """Say why an equation loses a client axis."""
    if takes_one(eqn, axis):
        return "one"
    return "axis" if has_rule(eqn) else "unknown"
