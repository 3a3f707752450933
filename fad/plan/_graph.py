"""Unrolling a program into steps: the jaxpr followed value by value.

Calls are entered and scans are followed iteration by iteration, slices and stacks
included, so what each iteration needs and sends is known exactly. Of a linear solve the
solver is followed.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from fad._compat import (
    Jaxpr,
    JaxprEqn,
    Literal,
    ShapedArray,
    inner_call,
    linear_solve,
    open_jaxpr,
    run_jaxprs,
    scan_parts,
)
from fad._errors import PlanError
from fad.placement import GATHERED
from fad.plan._schedule import schedule
from fad.plan._types import aval_of, server_value
from fad.plan._types import nbytes as nbytes
from fad.plan._types import type_text as type_text
from fad.plan._values import Value
from fad.plan._wires import FEDERATED as FEDERATED
from fad.plan._wires import Wires


class Graph(Wires):
    """The steps of a program, in an order that respects their dependencies.

    Args:
        while_bound: The most iterations of a while loop over rounds.
        cohorts: The sizes of the cohorts; programs over fewer clients count as their
            share of the largest.

    Attributes:
        asked: What ends the while loops: needed even where no output depends on it.
    """

    def __init__(self, while_bound: int | None, cohorts: Collection[int] = ()):
        super().__init__(cohorts)
        self.asked: list[Value] = []
        self._while_bound = while_bound
        self._in_solver = False
        self._federated: dict[int, tuple[Jaxpr, bool]] = {}

    def run(self, closed: Any, args: Sequence[Value]) -> list[Value]:
        """Follow a jaxpr on these inputs; return its outputs."""
        return self.follow(closed, args)[1]

    def follow(
        self, closed: Any, args: Sequence[Value]
    ) -> tuple[dict[Any, Value], list[Value]]:
        """Follow a jaxpr; return its variables' values, and its outputs."""
        jaxpr, _ = open_jaxpr(closed)
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env.update((v, self._constant(aval_of(v))) for v in jaxpr.constvars)

        def read(atom: Any) -> Value:
            return (
                server_value(aval_of(atom)) if isinstance(atom, Literal) else env[atom]
            )

        for eqn in jaxpr.eqns:
            ins = [read(v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self._eqn(eqn, ins), strict=True))
        return env, [read(v) for v in jaxpr.outvars]

    def federated(self, jaxpr: Jaxpr) -> bool:
        """Say whether a jaxpr holds a federated primitive at any depth."""
        if id(jaxpr) not in self._federated:
            found = any(
                eqn.primitive.name in FEDERATED
                or any(map(self.federated, run_jaxprs(eqn)))
                for eqn in jaxpr.eqns
            )
            self._federated[id(jaxpr)] = (jaxpr, found)
        return self._federated[id(jaxpr)][1]

    def _eqn(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if name in FEDERATED:
            return self._federated_eqn(eqn, ins)
        inner = inner_call(eqn)
        if inner is not None and eqn.params.get("differentiated"):
            return self._recompute(inner, ins)
        if inner is not None:
            return self.run(inner, ins)
        if any(map(self.federated, run_jaxprs(eqn))):
            rules = {
                "scan": self._scan,
                "cond": self._cond,
                "while": self._while,
                "custom_linear_solve": self._linear_solve,
            }
            return rules.get(name, self._call)(eqn, ins)
        avals = [aval_of(v) for v in eqn.outvars]
        if not any(v.at_clients for v in ins):
            return self._step("local", ins, [server_value(a) for a in avals])
        if name == "name" and eqn.params["name"] == GATHERED:
            return self._step("gather", ins, [server_value(avals[0])])
        return self._local(eqn, ins)

    def _recompute(self, inner: Jaxpr, ins: list[Value]) -> list[Value]:
        """Follow a checkpoint's backward pass, which waits for all that it is given.

        Its recomputation could start earlier, but what it makes would have to be kept.
        """
        after, self._after = self._after, (*self._after, *ins)
        outs = self.run(inner, ins)
        self._after = after
        return outs

    def _call(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        inner = [j for j in run_jaxprs(eqn) if len(j.invars) == len(ins)]
        if len(inner) != 1:
            raise PlanError(
                "fad.plan: a federated primitive stands inside the primitive "
                f"{eqn.primitive.name!r}, which the planner cannot follow. Move the "
                "round out of it."
            )
        return self.run(inner[0], ins)

    def _linear_solve(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        """Follow the solver, each of whose iterations waits for the one before.

        Clients could work out in advance what does not depend on it, but would have to
        keep that; as it is they are sent it with the vector, in every iteration.
        """
        outside, self._in_solver = self._in_solver, True
        outs = self.run(*linear_solve(eqn, ins))
        self._in_solver = outside
        return outs

    def _scan(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        scan = scan_parts(eqn)
        after, waits, self._in_solver = self._after, self._in_solver, False
        consts, carry, xs = _split(ins, scan.num_consts, scan.num_carry)
        x_vars = scan.body.jaxpr.invars[scan.num_consts + scan.num_carry :]
        rows = [
            self._slices(x, scan.length, aval_of(v))
            for x, v in zip(xs, x_vars, strict=True)
        ]
        y_vars = eqn.outvars[scan.num_carry :]
        stacks: list[dict[int, Value]] = [{} for _ in y_vars]
        order = range(scan.length)
        for i in reversed(order) if scan.reverse else order:
            self._after = (*after, *carry) if waits else after
            outs = self.run(scan.body, [*consts, *carry, *(row[i] for row in rows)])
            carry = outs[: scan.num_carry]
            for stack, y in zip(stacks, outs[scan.num_carry :], strict=True):
                stack[i] = y
        self._after, self._in_solver = after, waits
        ys = [
            self._stack([stack[i] for i in order], aval_of(v))
            for stack, v in zip(stacks, y_vars, strict=True)
        ]
        return [*carry, *ys]

    def _slices(self, x: Value, length: int, aval: ShapedArray) -> list[Value]:
        """Return the slices that a scan's iterations read, the same ones every time."""
        if x.parts is None:
            group = replace(x.group, run=None)  # the scan takes the first axis
            part = self._made(aval, group) if x.at_clients else server_value(aval)
            part = replace(part, kind=x.kind, source=x.source, keys=x.keys)
            x.parts = [replace(part, pending=[]) for _ in range(length)]
            if x.kind != "data":
                self._step("local", [x], x.parts)
        return x.parts

    def _stack(self, parts: list[Value], aval: ShapedArray) -> Value:
        out = server_value(aval)
        if any(p.at_clients for p in parts):
            out = Value("made", sum(p.nbytes for p in parts), out.text)
            out.group = parts[0].group
        out.parts = parts
        self._step("local", parts, [out])
        return out

    def _cond(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        steps, after = self.steps, self._after
        self._after = (*after, ins[0])
        tried = []
        for branch in eqn.params["branches"]:
            self.steps = []
            outs = self.run(branch, ins[1:])
            tried.append((schedule(self.steps, outs).size(), self.steps, outs))
        _, dearest, outs = max(tried, key=lambda t: t[0])
        self.steps, self._after = [*steps, *dearest], after
        joined = [
            Value(_where(v), v.nbytes, v.text, source=v.source, group=v.group)
            for v in outs
        ]
        for v, joint in zip(outs, joined, strict=True):
            self._step("local", [ins[0], v], [joint])
        return joined

    def _while(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        p, after = eqn.params, self._after
        if self._while_bound is None:
            raise PlanError(
                "fad.plan: a while loop holds communication, so the number of rounds "
                "is unbounded: it depends on data. Give the most iterations it may "
                "take, fad.plan(f, while_bound=...), or use jax.lax.scan."
            )
        test, body = p["cond_jaxpr"], p["body_jaxpr"]
        of_test, of_body, carry = _split(ins, p["cond_nconsts"], p["body_nconsts"])
        for _ in range(self._while_bound):
            go = self.run(test, [*of_test, *carry])
            self._after = (*self._after, *go)
            carry = self.run(body, [*of_body, *carry])
        self.asked += self.run(test, [*of_test, *carry])  # which says that it is over
        self._after = after
        return carry


def _where(value: Value) -> Any:
    return "made" if value.at_clients else "server"


def _split(values: list[Value], first: int, second: int) -> tuple[list[Value], ...]:
    cut = first + second
    return values[:first], values[first:cut], values[cut:]
