"""Putting steps into rounds: what is needed, and how early it can happen.

First, backwards from the outputs, the steps that anything needs; a map counts with
the outputs that are used. Then, forwards, each value's *level*, the number of sums
upstream: a map happens in the latest level of its inputs, a sum lifts its result by
one. What the server knows without being told, as public keys, is not brought about:
only its level counts.
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
    for step, real, ins, work in _needed(steps, outputs, works):
        if not real:
            _suppose(step, ins)
        elif step.kind == "send":
            step.outs[0].level = _told(ledger, step, _start(step))
        elif step.kind in ("sum", "gather"):
            _schedule_sum(ledger, step)
        elif step.kind == "work":
            _schedule_work(ledger, step, ins, work)
        else:
            _schedule_local(ledger, step)
    for value in outputs:
        ledger.use(value, max(_level(value), 0))
    return ledger


def _start(step: Step) -> int:
    """Return the first round in which a step can happen, its keys aside."""
    return max([0, *(v.level for v in (*step.ins, *step.after))])


def _told(ledger: Ledger, step: Step, level: int) -> int:
    """Return the first round, from ``level`` on, of which the server knows the keys."""
    told = [ledger.tell(k, level - 1) for k in step.keys]
    return max([level, *told, *map(_level, step.known)])


def _suppose(step: Step, ins: list[Value]) -> None:
    """Place what only the server's own knowledge needs: it happens nowhere else."""
    before = (*ins, *step.known, *step.after)
    level = max(map(_level, before), default=-1)
    for v in step.outs:
        v.level = level if v.at_clients else max(level, 0)


def _level(value: Value) -> int:
    return -1 if value.kind == "data" else value.level


def _schedule_sum(ledger: Ledger, step: Step) -> None:
    level = _start(step)
    if not step.ins:  # nothing but keys is sent
        level = max([level, *map(_level, step.known)])
        step.outs[0].level = _told(ledger, step, level)
        return
    step.outs[0].level = _told(ledger, step, level + 1)
    ledger.sum(step.ins[0], level, step.codes)
    ledger.come_back(step.keys, level)


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
        share = step.outs[0].group.share
        if (id(closed), used, share) not in self._known:
            pruned, needs = dce(closed, used)
            work = Work(name, count_flops(pruned.jaxpr), share)
            self._known[id(closed), used, share] = (closed, needs, work)
        _, needs, work = self._known[id(closed), used, share]
        return [v for v, on in zip(step.ins, needs, strict=True) if on], work


def _needed(
    steps: Sequence[Step], outputs: Sequence[Value], works: _Works
) -> list[tuple[Step, bool, list[Value], Any]]:
    """Return the needed steps in order, with a map's needed inputs and its work.

    And whether they really happen: those do not whose outputs only the server's own
    knowledge needs, sums aside, without which it would not know.
    """
    wanted = {id(v): True for v in outputs}
    kept = []
    for step in reversed(steps):
        used = tuple(id(v) in wanted for v in step.outs)
        if not any(used):
            continue
        ins, work = step.ins, None
        if step.kind == "work":
            ins, work = works.of(step, used)
        real = step.kind in ("sum", "gather")
        real = real or any(wanted.get(id(v), False) for v in step.outs)
        for v in (*ins, *step.after, *step.keys):
            wanted[id(v)] = real or wanted.get(id(v), False)
        for v in step.known:
            wanted.setdefault(id(v), False)
        kept.append((step, real, ins, work))
    return kept[::-1]
