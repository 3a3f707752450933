"""Placing a jaxpr's values: server or clients, now or later, stored or not."""

import functools
from collections.abc import Sequence
from typing import Any

from fad._compat import Scan, scan_parts
from fad.compile._flatten import FEDERATED, Eqn, Flat, Ref, flatten, shape_of
from fad.compile._program import Program, Step, Values
from fad.compile._rowwise import rowwise
from fad.primitives._rows import take

_CLIENTS_READ = ("fad_map", "fad_sum", "fad_deselect", "add_any", "barrier")


def place(
    closed: Any,
    *,
    defer: Sequence[bool] = (),
    ins: Sequence[Ref] = (),
    fills: Sequence[bool] = (),
) -> Program:
    """Place a jaxpr.

    Args:
        closed: The jaxpr.
        defer: Which outputs may be returned as values to be made later.
        ins: What the inputs look like from outside, for a loop's body: ``client``,
            ``depth`` and ``n`` count.
        fills: Which outputs are client values even where they are one number repeated:
            what a branch of a cond returns in place of another branch's values.
    """
    return _Placer(flatten(closed), list(defer), ins, fills).program()


class _Placer(Values):
    def __init__(
        self, flat: Flat, defer: list[bool], ins: Sequence[Ref], fills: Sequence[bool]
    ):
        super().__init__()
        self.flat = flat
        self.fills = {
            id(ref) for ref, on in zip(flat.outputs, fills, strict=False) if on
        }
        self.steps: list[Step] = []
        self.defer = {
            id(ref) for ref, on in zip(flat.outputs, defer, strict=False) if on
        }
        firm = {id(r) for r, on in zip(flat.outputs, defer, strict=False) if not on}
        self.defer -= firm
        if not defer:
            self.defer = set()
        for ref, outer in zip(flat.inputs, ins, strict=False):
            ref.client, ref.n, ref.depth = outer.client, outer.n, outer.depth
            ref.pinned, ref.cheap = outer.pinned, outer.cheap

    def program(self) -> Program:
        for eqn in self.flat.eqns:
            self.place(eqn)
        for ref in self.flat.outputs:
            if id(ref) not in self.defer or ref.pinned:
                self.store(ref)
        levels = [s.level for s in self.steps] + [r.level for r in self.flat.outputs]
        late = [
            id(r) in self.defer and r.client and not r.keep for r in self.flat.outputs
        ]
        return Program(
            self.flat.inputs,
            self.steps,
            self.flat.outputs,
            late,
            max(levels, default=0) + 1,
            list(self.kept.values()),
        )

    # ---- equations -----------------------------------------------------------------

    def place(self, eqn: Eqn) -> None:
        level = max((ref.level for ref in eqn.ins), default=0)
        rule = getattr(self, f"_{eqn.name}", None)
        if eqn.name in (*FEDERATED, "barrier") and rule:
            rule(eqn, level)
        elif eqn.federated and eqn.name in ("scan", "cond", "while"):
            getattr(self, f"_{eqn.name}")(eqn)
        elif not self._row(eqn, level):
            self._server(eqn)

    def _fad_broadcast(self, eqn: Eqn, level: int) -> None:
        n, (x,), (out,) = eqn.eqn.params["clients"], eqn.ins, eqn.outs
        level = self.store(x)
        out.client, out.n, out.level, out.cheap = True, n, level, True
        self.steps.append(Step("send", eqn, level, n))

    def _fad_map(self, eqn: Eqn, level: int) -> None:
        n = eqn.eqn.params["clients"]
        if eqn.eqn.params["jaxpr"].effects:
            self._server(eqn, "it has side effects")
            return
        self.made(eqn, n, level)
        self.steps.append(Step("map", eqn, level, n))

    def _fad_select(self, eqn: Eqn, level: int) -> None:
        n, (x, *keys) = eqn.eqn.params["clients"], eqn.ins
        level = max(level, self.store(x))
        self.made(eqn, n, level)
        eqn.outs[0].cheap = all(ref.cheap for ref in keys)
        work = functools.partial(take, axes=eqn.eqn.params["axes"])
        self.steps.append(Step("select", eqn, level, n, work=work))

    def _fad_sum(self, eqn: Eqn, level: int) -> None:
        for ref in eqn.ins:
            self.read(ref, level)
        eqn.outs[0].level = level + 1
        self.steps.append(Step("sum", eqn, level, eqn.eqn.params["clients"]))

    _fad_deselect = _fad_sum

    def _barrier(self, eqn: Eqn, level: int) -> None:
        for x, out in zip(eqn.ins, eqn.outs, strict=True):
            out.client, out.n, out.depth = x.client, x.n, x.depth
            out.cheap, out.pinned, out.crossing = x.cheap, x.pinned, x.crossing
            again = self.read(x, level)
            if x.keep and x.level < level:
                out.client = False
            out.crossing, out.level = out.crossing or again, level
        self.steps.append(Step("barrier", eqn, level))

    def _row(self, eqn: Eqn, level: int) -> bool:
        clients = [ref for ref in eqn.ins if ref.client]
        n = clients[0].n if clients else self._fills(eqn)
        if not n or any(ref.depth for ref in clients):
            return False
        if not clients:
            (out,) = eqn.outs
            out.client, out.n, out.level, out.cheap = True, n, level, True
            self.steps.append(Step("fill", eqn, level, n))
            return True
        work = rowwise(eqn, n)
        if work is None:
            return False
        self.made(eqn, n, level)
        eqn.outs[0].cheap = all(ref.cheap or shape_of(ref) == () for ref in eqn.ins)
        self.steps.append(Step("row", eqn, level, n, work=work))
        return True

    def _fills(self, eqn: Eqn) -> int:
        """Say for how many clients an equation fills zeros that only they read."""
        if eqn.name != "broadcast_in_dim" or shape_of(eqn.ins[0]) != ():
            return 0
        shape = shape_of(eqn.outs[0])
        if id(eqn.outs[0]) in self.fills and shape:
            return shape[0]
        for use, _ in eqn.outs[0].uses:
            n = use.eqn.params.get("clients", 0) if use.name in FEDERATED else 0
            if n and shape[:1] == (n,):
                return n
        return 0

    def _server(self, eqn: Eqn, why: str = "") -> None:
        level = max((self.store(ref) for ref in eqn.ins), default=0)
        for ref in eqn.outs:
            ref.level = level
        if eqn.federated and not why:
            why = f"it stands inside {eqn.name!r}"
        self.steps.append(Step("server", eqn, level, why=why))

    # ---- loops ---------------------------------------------------------------------

    def _scan(self, eqn: Eqn) -> None:
        scan = scan_parts(eqn.eqn)
        first_x = scan.num_consts + scan.num_carry
        stacked = [ref.client and ref.depth > 0 for ref in eqn.ins]
        firm = [
            self.store(ref)
            for i, ref in enumerate(eqn.ins)
            if i < first_x or not stacked[i]
        ]
        level = max([*firm, *(r.level for r in eqn.ins)], default=0)
        ins = [
            Ref(r.aval, client=i >= first_x and on, n=r.n, depth=max(r.depth - 1, 0))
            for i, (r, on) in enumerate(zip(eqn.ins, stacked, strict=True))
        ]
        defer = [
            i >= scan.num_carry and self.deferrable(ref)
            for i, ref in enumerate(eqn.outs)
        ]
        body = place(scan.body, defer=defer, ins=ins)
        for ref, inner, later in zip(eqn.outs, body.outputs, defer, strict=True):
            ref.level = level
            if later and inner.client and not inner.keep:
                ref.client, ref.n, ref.depth = True, inner.n, inner.depth + 1
                ref.pinned = inner.pinned
        self.steps.append(Step("loop", eqn, level, subs=[body]))

    def deferrable(self, ref: Ref) -> bool:
        """Say whether only scans, iteration by iteration, read a stack."""
        if ref.output and id(ref) not in self.defer:
            return False
        return all(self._reads_slices(eqn, i) for eqn, i in ref.uses)

    def _reads_slices(self, eqn: Eqn, i: int) -> bool:
        if eqn.name == "barrier":
            return self.deferrable(eqn.outs[i])
        if eqn.name != "scan" or not eqn.federated:
            return False
        scan: Scan = scan_parts(eqn.eqn)
        return i >= scan.num_consts + scan.num_carry

    def _cond(self, eqn: Eqn) -> None:
        level = max([self.store(eqn.ins[0]), *(ref.level for ref in eqn.ins)])
        crossing = [self.read(ref, level) for ref in eqn.ins[1:]]
        ins = [
            Ref(r.aval, client=r.client and not r.keep, n=r.n, cheap=r.cheap)
            for r in eqn.ins[1:]
        ]
        defer = [self._for_clients(ref) for ref in eqn.outs]
        fills: list[bool] = []
        branches: list[Program] = []
        for _ in range(3):  # to see what any branch's clients make, and what it stacks
            branches = [
                place(b, defer=defer, ins=ins, fills=fills)
                for b in eqn.eqn.params["branches"]
            ]
            made = list(zip(*(b.outputs for b in branches), strict=True))
            defer = [
                on and not any(ref.depth for ref in refs)
                for on, refs in zip(defer, made, strict=True)
            ]
            late = zip(*(b.late for b in branches), strict=True)
            fills = [on and any(b) for on, b in zip(defer, late, strict=True)]
        for i, ref in enumerate(eqn.outs):
            ref.level = level
            if fills[i]:
                ref.client, ref.crossing = True, any(crossing)
                ref.n = max(b.outputs[i].n for b in branches)
        self.steps.append(Step("loop", eqn, level, subs=branches))

    def _for_clients(self, ref: Ref) -> bool:
        """Say whether only client work reads a value."""
        if ref.output and id(ref) not in self.defer:
            return False
        for eqn, i in ref.uses:
            if eqn.name == "barrier" and not self._for_clients(eqn.outs[i]):
                return False
            into = eqn.name in ("cond", "fad_select") and eqn.federated and i > 0
            if eqn.name not in _CLIENTS_READ and not into:
                return False
        return True

    def _while(self, eqn: Eqn) -> None:
        level = max((self.store(ref) for ref in eqn.ins), default=0)
        p = eqn.eqn.params
        subs = [place(p["cond_jaxpr"]), place(p["body_jaxpr"])]
        for ref in eqn.outs:
            ref.level = level
        self.steps.append(Step("loop", eqn, level, subs=subs))
