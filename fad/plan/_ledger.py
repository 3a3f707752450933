"""Writing down what happens in which round."""

from collections.abc import Sequence

from fad.plan._values import Round, Value, Wire


class Ledger:
    """The rounds of a program as they are found.

    A broadcast is put down in the first round that uses it, since it may be sent at any
    time after its value is known; that makes the number of rounds the least that the
    dependencies allow.
    """

    def __init__(self):
        self._rounds: dict[int, Round] = {}
        self._sent: set[tuple[int, int]] = set()
        self._summed: set[tuple[int, int]] = set()
        self._first: dict[int, tuple[int, Value]] = {}
        self._kept: dict[int, list[int]] = {}  # id -> [from, until, bytes]
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
        )

    def _send(self, value: Value, level: int) -> None:
        key = (id(value.source), level)
        if key not in self._sent:
            self._sent.add(key)
            self.round(level).down.append(Wire(value.text, value.nbytes))

    def _keep(self, value: Value, since: int, until: int) -> None:
        kept = self._kept.setdefault(id(value), [since, until, value.nbytes])
        kept[1] = max(kept[1], until)
        self.round(until).returns = True

    def sum(self, value: Value, level: int, codes: list[Wire] | None = None) -> None:
        """Note that ``value``, or a code of it, goes up in round ``level``."""
        self.use(value, level)
        key = (id(value), level)
        if key not in self._summed:
            self._summed.add(key)
            self.round(level).up += codes or [Wire(value.text, value.nbytes)]

    def size(self) -> tuple[int, int]:
        """Return the number of rounds and the bytes moved, for comparing branches."""
        moved = sum(r.bytes_down + r.bytes_up for r in self._rounds.values())
        return max(self._rounds, default=-1) + 1, moved

    def rounds(self) -> list[Round]:
        """Return the rounds in order, with the state that clients keep filled in."""
        last = max(self._rounds, default=-1)
        rounds = [self._rounds.get(i, Round()) for i in range(last + 1)]
        for since, until, nbytes in self._kept.values():
            for level in range(since, until):
                rounds[level].state_bytes += nbytes
        return rounds
