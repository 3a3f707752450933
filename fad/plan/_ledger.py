"""Writing down what happens in which round."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from fad.plan._values import Round, Value, Wire, in_share


class Ledger:
    """The rounds of a program as they are found.

    A broadcast is put down in the first round that uses it, since it may be sent at any
    time after its value is known; that makes the number of rounds the least that the
    dependencies allow.
    """

    def __init__(self):
        self._rounds: dict[int, Round] = {}
        self._sent: set[tuple[Any, Any, int]] = set()
        self._told: dict[int, int] = {}  # id of keys -> the round that sent them
        self._summed: set[tuple[int, int]] = set()
        self._first: dict[int, tuple[int, Value]] = {}
        self._kept: dict[int, list[Any]] = {}  # id -> [from, until, bytes]
        self._alive: list[Value] = []  # ids are only good while their value lives

    def round(self, level: int) -> Round:
        """Return the round of this number, new if need be."""
        return self._rounds.setdefault(level, Round())

    def use(self, value: Value, level: int, *, resend: bool = False) -> None:
        """Note that a client uses ``value`` in round ``level``."""
        if not value.at_clients:
            return
        self._alive.append(value)
        while value.pending:
            value.pending.pop()(level)
        first, _ = self._first.setdefault(id(value), (level, value))
        if value.kind == "sent" and (first == level or resend):
            self._send(value, level)
        elif value.kind == "sent":
            self._keep(value, first, level)
        elif value.kind == "made" and 0 <= value.level < level:
            self._keep(value, value.level, level)
        if first != level and not (value.kind == "sent" and resend):
            self.round(max(first, level)).returns = True

    def returning(self, values: Sequence[Value], level: int) -> bool:
        """Say whether only a client of an earlier round can have these values."""
        return any(
            0 <= v.level < level
            if v.kind == "made"
            else v.kind == "data" and self._first.get(id(v), (level, v))[0] < level
            for v in values
        ) or any(self._told_before(v.keys, level) for v in values)

    def _told_before(self, keys: Sequence[Value], level: int) -> bool:
        return any(self._told.get(id(k), level) < level for k in keys)

    def tell(self, keys: Value, by: int) -> int:
        """Note that clients send keys, once; return the level that then knows them.

        What their own data give is sent ``by`` that round, the rest as soon as it is
        there.
        """
        if id(keys) not in self._told:
            own = keys.kind == "data" or keys.level < 0
            level = max(by, 0) if own else keys.level
            self.sum(keys, level)
            self._told[id(keys)] = level
        return self._told[id(keys)] + 1

    def come_back(self, keys: Sequence[Value], level: int) -> None:
        """Note that whoever sent keys in an earlier round is needed in this one."""
        if self._told_before(keys, level):
            self.round(level).returns = True

    def _send(self, value: Value, level: int) -> None:
        self.come_back(value.keys, level)
        some = value.group.share < 1
        to = (value.group.run or id(value)) if some else None
        if (value.source, to, level) not in self._sent:
            self._sent.add((value.source, to, level))
            self.round(level).down.append(_wire(value))

    def _keep(self, value: Value, since: int, until: int) -> None:
        kept = self._kept.setdefault(id(value), [since, until, _held(value)])
        kept[1] = max(kept[1], until)
        self.round(until).returns = True

    def sum(self, value: Value, level: int, codes: list[Wire] | None = None) -> None:
        """Note that ``value``, or a code of it, goes up in round ``level``."""
        self.use(value, level)
        key = (id(value), level)
        if key not in self._summed:
            self._summed.add(key)
            self.round(level).up += [_wire(value)] if codes is None else codes

    def size(self) -> tuple[int, int]:
        """Return the number of rounds and the bytes moved, for comparing branches."""
        moved = sum(r.bytes_down + r.bytes_up for r in self._rounds.values())
        return max(self._rounds, default=-1) + 1, moved

    def rounds(self) -> list[Round]:
        """Return the rounds in order, with the state that clients keep filled in."""
        last = max(self._rounds, default=-1)
        rounds = [self._rounds.get(i, Round()) for i in range(last + 1)]
        held: list[int | Fraction] = [0] * len(rounds)
        for since, until, nbytes in self._kept.values():
            for level in range(since, until):
                held[level] += nbytes
        for r, nbytes in zip(rounds, held, strict=True):
            r.state_bytes = math.ceil(nbytes)
        return rounds


def _wire(value: Value) -> Wire:
    return Wire(value.text, value.nbytes, value.group.share)


def _held(value: Value) -> int | Fraction:
    return in_share(value.nbytes, value.group.share)
