"""The steps of federated equations: who sends what, and what waits for it."""

from collections.abc import Collection
from dataclasses import replace
from fractions import Fraction
from typing import Any

from fad._compat import JaxprEqn, ShapedArray
from fad.plan._types import aval_of, nbytes, one_of, server_value, type_text
from fad.plan._values import Group, Step, Value, Wire

FEDERATED = frozenset(
    {"fad_broadcast", "fad_deselect", "fad_map", "fad_select", "fad_sum"}
)


class Wires:
    """The steps of a program's communication and of its clients' work.

    Attributes:
        steps: The steps.
        clients: The number of clients of the whole.
    """

    def __init__(self, cohorts: Collection[int]):
        self.steps: list[Step] = []
        self.clients = max(cohorts, default=0)
        self._cohorts = cohorts
        self._after: tuple[Value, ...] = ()
        self._constants: list[Value] = []
        self._runs: dict[Any, Value] = {}  # some clients' part of data, by the slice

    def _constant(self, aval: ShapedArray) -> Value:
        value = server_value(aval)
        self._constants.append(value)
        return value

    def _step(self, kind: Any, ins: list[Value], outs: list[Value], **more: Any):
        self.steps.append(Step(kind, ins, outs, after=self._after, **more))
        return outs

    def _made(self, aval: ShapedArray, group: Group) -> Value:
        each = nbytes(aval) // (group.clients or self.clients or 1)
        return Value("made", each, type_text(one_of(aval)), group=group)

    def _local(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        """Follow an equation on client values; some clients' data are data too."""
        avals, group = [aval_of(v) for v in eqn.outvars], local_group(eqn, ins)
        if ins[0].kind == "data" and ins[0].parts is None and _run(eqn) is not None:
            p = eqn.params
            key = ins[0], p["start_indices"], p["limit_indices"], p["strides"]
            if key not in self._runs:
                self._runs[key] = replace(self._made(avals[0], group), kind="data")
            return [self._runs[key]]
        return self._step("local", ins, [self._made(a, group) for a in avals])

    def _federated_eqn(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        self.clients = self.clients or eqn.params["clients"]
        rules = {
            "fad_broadcast": self._send,
            "fad_select": self._select,
            "fad_map": self._map,
        }
        return rules.get(eqn.primitive.name, self._sum)(eqn, ins)

    def _group(self, eqn: JaxprEqn, run: tuple[int, int] | None = None) -> Group:
        """Return the clients of an equation: a cohort, or a share of the largest.

        Whoever works with a run of the largest cohort is part of it, even where
        arguments of as many clients, such as the run's keys, look like another cohort.
        """
        n = eqn.params["clients"]
        alone = run is None and n in self._cohorts
        whole = alone or n > self.clients or not self._cohorts
        return Group(n, Fraction(1) if whole else Fraction(n, self.clients), run)

    def _read(self, eqn: JaxprEqn, atoms: Any, ins: list[Value]) -> Group:
        """Note which clients read these values, and how much each has of its own.

        A closed-over array that clients read as theirs is their data.
        """
        at_clients = (v.group.run for v in ins if v.at_clients)
        run = next((r for r in at_clients if r is not None), None)
        group = self._group(eqn, run)
        for v, atom in zip(ins, atoms, strict=True):
            if v.kind == "server" and any(v is c for c in self._constants):
                v.kind = "data"
            if v.kind == "sent":
                v.group = group if v.group.run is None else v.group
            elif v.at_clients and v.parts is None:
                aval = aval_of(atom)
                v.nbytes = nbytes(aval) // group.clients
                v.text, v.group = type_text(one_of(aval)), group
        return group

    def _send(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        (x,) = ins
        sent = Value("sent", x.nbytes, x.text, source=x, group=self._group(eqn))
        return self._step("send", ins, [sent])

    def _select(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        x, *keys = ins
        group = self._read(eqn, eqn.invars[1:], keys)
        told, known = _keys(eqn, keys)
        one = one_of(aval_of(eqn.outvars[0]))
        source = (x, eqn.params["axes"], *keys)
        sent = Value("sent", nbytes(one), type_text(one), source=source, group=group)
        sent.keys = told
        return self._step("send", [x], [sent], keys=told, known=known)

    def _map(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        group = self._read(eqn, eqn.invars, ins)
        outs = [self._made(aval_of(v), group) for v in eqn.outvars]
        return self._step("work", ins, outs, eqn=eqn)

    def _sum(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        """Follow a sum of values or of slices; with ``wire=()`` nothing is sent."""
        group, wire = self._read(eqn, eqn.invars, ins), eqn.params["wire"]
        (y, *keys), codes = ins, None
        told, known = _keys(eqn, keys)
        if wire is not None:
            types = [ShapedArray(t.shape, t.dtype) for t in wire]
            codes = [Wire(type_text(t), nbytes(t), group.share) for t in types]
        summed, known = ([], (y, *known)) if codes == [] else ([y], known)
        outs = [server_value(aval_of(eqn.outvars[0]))]
        return self._step("sum", summed, outs, codes=codes, keys=told, known=known)


def _keys(eqn: JaxprEqn, keys: list[Value]) -> tuple[tuple[Value, ...], ...]:
    """Return the keys that clients have to send, and those that the server knows."""
    public = eqn.params.get("public", True)
    told = tuple(k for k in keys if not public and k.kind in ("data", "made"))
    return told, tuple(k for k in keys if not any(k is t for t in told))


def local_group(eqn: JaxprEqn, ins: list[Value]) -> Group:
    """Return the clients of what an equation makes of client values outside a map.

    They are those of its input; a slice of the client axis picks a run of them.
    """
    groups = [v.group for v in ins if v.at_clients]
    group = next((g for g in groups if g.run is not None), groups[0])
    taken, name = _run(eqn), eqn.primitive.name
    if name == "pad" or (name == "squeeze" and 0 in eqn.params["dimensions"]):
        return replace(group, run=None)
    if taken is None:
        return group
    first = 0 if group.run is None else group.run[0]
    return replace(group, run=(first + taken[0], first + taken[1]))


def _run(eqn: JaxprEqn) -> tuple[int, int] | None:
    """Return the run of the first axis that a slice takes, if it takes a part."""
    if eqn.primitive.name != "slice" or not eqn.params["start_indices"]:
        return None
    run = eqn.params["start_indices"][0], eqn.params["limit_indices"][0]
    whole = run == (0, aval_of(eqn.invars[0]).shape[0])
    return None if whole else run
