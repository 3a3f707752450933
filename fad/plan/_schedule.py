"""Putting steps into rounds: what is needed, and how early it can happen.

First, backwards from the outputs, the steps that anything needs; a map counts with
the outputs that are used. Then, forwards, each value's *level*, the number of sums
upstream: a map happens in the latest level of its inputs, a sum lifts its result by
one.
"""

from collections.abc import Sequence
from typing import Any

from fad._compat import dce
from fad.plan._flops import count_flops
from fad.plan._ledger import Ledger
from fad.plan._values import Step, Value, Work


def schedule(steps: Sequence[Step], outputs: Sequence[Value]) -> Ledger:
    """Return the rounds of the steps that the outputs need."""
    ledger, works = Ledger(), _Works()
    for step, used, work in _needed(steps, outputs, works):
        floor = max((v.level for v in step.after), default=0)
        if step.kind == "send":
            step.outs[0].level = max(step.ins[0].level, floor)
        elif step.kind in ("sum", "gather"):
            level = max(step.ins[0].level, floor)
            ledger.sum(step.ins[0], level, step.codes)
            step.outs[0].level = level + 1
        elif step.kind == "work":
            _schedule_work(ledger, step, used, work)
        else:
            _schedule_local(ledger, step)
    for value in outputs:
        ledger.use(value, max(_level(value), 0))
    return ledger


def _level(value: Value) -> int:
    return -1 if value.kind == "data" else value.level


def _schedule_work(ledger: Ledger, step: Step, ins: list[Value], work: Work) -> None:
    level = max(map(_level, ins), default=-1)

    def happen(at: int) -> None:
        # A client that need not come back for anything else is sent what it needs.
        resend = step.eqn.params["remat"] or not ledger.returning(ins, at)
        for v in ins:
            ledger.use(v, at, resend=resend)
        ledger.round(at).work.append(work)

    pending = []
    if level >= 0:
        happen(level)
    else:
        pending.append(happen)
    for v in step.outs:
        v.level, v.pending = level, pending  # one list: whichever is used first


def _schedule_local(ledger: Ledger, step: Step) -> None:
    level = max(map(_level, step.ins), default=0)
    if any(v.at_clients for v in step.outs) and step.outs[0].parts is None:
        for v in step.ins:
            if v.parts is None:
                ledger.use(v, max(level, 0))
    for v in step.outs:
        v.level = level if v.at_clients else max(level, 0)


class _Works:
    """One client's work by the outputs that are used, counted once."""

    def __init__(self):
        self._known: dict[Any, tuple[Any, list[bool], Work]] = {}

    def of(self, step: Step, used: tuple[bool, ...]) -> tuple[list[Value], Work]:
        """Return the inputs that the used outputs need, and the work."""
        closed, name = step.eqn.params["jaxpr"], step.eqn.params["name"]
        if (id(closed), used) not in self._known:
            pruned, needs = dce(closed, used)
            work = Work(name, count_flops(pruned.jaxpr))
            self._known[id(closed), used] = (closed, needs, work)
        _, needs, work = self._known[id(closed), used]
        return [v for v, on in zip(step.ins, needs, strict=True) if on], work


def _needed(
    steps: Sequence[Step], outputs: Sequence[Value], works: _Works
) -> list[tuple[Step, list[Value], Any]]:
    """Return the needed steps in order, with a map's needed inputs and its work."""
    wanted = {id(v) for v in outputs}
    kept = []
    for step in reversed(steps):
        used = tuple(id(v) in wanted for v in step.outs)
        if not any(used):
            continue
        ins, work = step.ins, None
        if step.kind == "work":
            ins, work = works.of(step, used)
        wanted.update(map(id, ins))
        wanted.update(map(id, step.after))
        kept.append((step, ins, work))
    return kept[::-1]
