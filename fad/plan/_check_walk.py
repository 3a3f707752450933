"""Following client axes through a program, equation by equation.

A value is at the clients where one of its axes is a client axis. An equation must hand
each client axis on; the one that takes it away is ``fad_sum``. Where any other does,
``lost`` is called: the checker raises there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fad._compat import (
    JaxprEqn,
    Literal,
    call_body,
    jaxprs_in_params,
    linear_solve,
    open_jaxpr,
    scan_parts,
)
from fad.placement import GATHERED
from fad.plan._check_rules import HOST, IDENTITIES, has_rule, moved
from fad.plan._check_values import (
    Placed,
    any_client,
    at_server,
    mapped,
    shifted,
    union,
)
from fad.plan._graph import FEDERATED
from fad.plan._report import Allowed


class Walk:
    """Follow a jaxpr; subclasses say what to do at the events.

    Attributes:
        depth: How many maps stand around: inside one, a client's own values have no
            client axis, unless a program runs inside the client's work.
        around: The equations that stand around, the innermost first.
    """

    def __init__(self):
        self.depth = 0
        self.around: list[JaxprEqn] = []

    def lost(self, eqn: JaxprEqn, value: Placed, atom: Any, why: str) -> Any:
        """Handle a client value that an equation takes away from the clients.

        Returns:
            What was allowed, where the equation's outputs now are the server's; or
            None to go on with what is left of the axes.
        """
        raise NotImplementedError

    def hosted(self, eqn: JaxprEqn, value: Placed, atom: Any) -> Allowed | None:
        """Handle a client value that goes to a host."""
        raise NotImplementedError

    def stuck(self, eqn: JaxprEqn) -> None:
        """Handle an equation with federated ones inside that cannot be followed."""

    def received(self, eqn: JaxprEqn, value: Placed, atom: Any, how: str) -> None:
        """Handle a server value that goes to the clients."""

    def mapped(self, eqn: JaxprEqn, ins: Sequence[Placed]) -> None:
        """Handle the operands of a map or a sum."""

    def aggregated(self, eqn: JaxprEqn, value: Placed) -> frozenset:
        """Handle a sum; return what its output depends on."""
        return value.depends

    def closed_over(self, const: Any) -> Placed:
        """Place an array that the function closes over."""
        del const
        return Placed()

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
        if name in HOST or _leaves_the_device(eqn):
            return self._host(eqn, ins)
        alarming = FEDERATED | HOST if self.depth or any_client(ins) else FEDERATED
        if _holds(eqn, alarming):
            self.stuck(eqn)
        if name in IDENTITIES:
            return ins
        return self._local(eqn, ins)

    # --------------------------------------------------------------------------------
    # federated equations
    # --------------------------------------------------------------------------------

    def _broadcast(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        (x,) = ins
        if x.axes:
            allowed = self.lost(eqn, x, eqn.invars[0], "broadcast")
            x = x if allowed is None else at_server([x], allowed)
        self.received(eqn, x, eqn.invars[0], "broadcast")
        return [replace(x, axes=mapped(x), maker="fad.broadcast", made=())]

    def _map(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        ins = self._operands(eqn, ins)
        self.mapped(eqn, ins)
        for x, atom in zip(ins, eqn.invars, strict=True):
            if not x.axes:
                self.received(eqn, x, atom, "row")
        own = [replace(x, axes=shifted(x, -1), constant=False) for x in ins]
        self.depth += 1
        outs = self.run(eqn.params["jaxpr"], own)
        self.depth -= 1
        maker = f"fad.map({eqn.params['name']}, ...)"
        return [Placed(mapped(y), y.depends, False, maker) for y in outs]

    def _sum(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        (x,) = self._operands(eqn, ins)
        self.mapped(eqn, [x])
        depends = self.aggregated(eqn, x)
        return [Placed(shifted(x, -1), depends, x.constant, "fad.sum")]

    def _operands(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        """Check that client axes stand where a map or a sum reads them, in front."""
        checked = []
        for x, atom in zip(ins, eqn.invars, strict=True):
            if x.axes and 0 not in x.axes:
                allowed = self.lost(eqn, x, atom, "misplaced")
                x = x if allowed is None else at_server([x], allowed)
            checked.append(x)
        return checked

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
            axes, agree = union([a.axes, b.axes])
            depends, maker = a.depends | b.depends, a.maker if a.axes else b.maker
            constant = a.constant and b.constant
            v = Placed(axes, depends, constant, maker, b.made or a.made)
            if not agree:
                allowed = self.lost(eqn, v, None, "mixed")
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
            places = {a: moved(eqn, i, a) for a in x.axes}
            if None in places.values():
                allowed = self.lost(
                    eqn, x, atom, "axis" if has_rule(eqn) else "unknown"
                )
                if allowed is not None:
                    return [at_server(ins, allowed)] * len(eqn.outvars)
            moves.append({p: x.axes[a] for a, p in places.items() if p is not None})
        axes, agree = union(moves)
        if not axes:
            return [at_server(ins)] * len(eqn.outvars)
        first = next(x for x in ins if x.axes)
        if not agree:
            allowed = self.lost(eqn, first, None, "mixed")
            if allowed is not None:
                return [at_server(ins, allowed)] * len(eqn.outvars)
        for x, atom in zip(ins, eqn.invars, strict=True):
            if not x.axes:
                self.received(eqn, x, atom, eqn.primitive.name)
        depends = frozenset().union(*(x.depends for x in ins))
        return [Placed(axes, depends, False, first.maker)] * len(eqn.outvars)


def _holds(eqn: JaxprEqn, names: frozenset[str]) -> bool:
    """Say whether a primitive of these names stands inside an equation."""
    inner = (e for jaxpr in jaxprs_in_params(eqn.params) for e in jaxpr.eqns)
    return any(e.primitive.name in names or _holds(e, names) for e in inner)


def _leaves_the_device(eqn: JaxprEqn) -> bool:
    moves = eqn.primitive.name == "device_put"
    return moves and any(d is not None for d in eqn.params["devices"])
