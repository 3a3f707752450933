"""What the planner knows of a program: its values, its steps, its rounds."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

Kind = Literal["server", "data", "sent", "made"]


@dataclass(frozen=True)
class Group:
    """The clients that have a value.

    Attributes:
        clients: How many its bytes are divided by; 0 where nothing has told it yet.
        share: Their share of all clients.
        run: Which of the clients they are, the first and the end of a run, where a
            slice of the client axis tells.
    """

    clients: int = 0
    share: Fraction = Fraction(1)
    run: tuple[int, int] | None = None


@dataclass(eq=False)
class Value:
    """One value of a program, as the planner sees it.

    Attributes:
        kind: ``server``; at the clients: ``data`` (an argument), ``sent`` (broadcast),
            or ``made`` (computed there).
        nbytes: Its size, per client where it lives there.
        text: Its type, ``f32[3]``, per client likewise.
        parts: The values of a scan's iterations, where this is their stack.
        source: What was sent: the server value, with the keys of its slices.
        group: The clients that have it.
        keys: Keys that the client had to send before it was sent this.
        level: The number of sums upstream: the first round the value can take part in;
            -1 for what a client makes of its own data alone, at any time.
        pending: What to note in the round that first uses the value, where its own
            level leaves that open; shared by the outputs of one map.
    """

    kind: Kind
    nbytes: int
    text: str
    parts: "list[Value] | None" = None
    source: Any = None
    group: Group = Group()
    keys: "tuple[Value, ...]" = ()
    level: int = 0
    pending: list[Callable[[int], None]] = field(default_factory=list)

    @property
    def at_clients(self) -> bool:
        """Whether the value lives at the clients."""
        return self.kind != "server"


@dataclass(frozen=True)
class Wire:
    """One value on the wire.

    Attributes:
        text: Its type.
        nbytes: Its bytes, of one of the clients that it concerns.
        share: Their share of all clients.
    """

    text: str
    nbytes: int
    share: Fraction = Fraction(1)


@dataclass(eq=False)
class Step:
    """One step of the unrolled program.

    Attributes:
        kind: ``send``, ``work`` (a map), ``sum``, ``gather`` (the server gets the
            clients' values one by one), or ``local`` to where its values are.
        ins: What it reads.
        outs: What it makes.
        eqn: The map's equation.
        after: Server values that decide whether the step happens at all.
        keys: Keys that clients have to send before the server can do it.
        known: Values that it waits for and that the server knows by itself.
        codes: Of a sum, what travels in the place of the summand, if not itself.
    """

    kind: Literal["send", "work", "sum", "gather", "local"]
    ins: list[Value]
    outs: list[Value]
    eqn: Any = None
    after: tuple[Value, ...] = ()
    keys: tuple[Value, ...] = ()
    known: tuple[Value, ...] = ()
    codes: list[Wire] | None = None


@dataclass(frozen=True)
class Work:
    """One map at a client.

    Attributes:
        name: The function's name.
        flops: Its floating-point operations, of one of the clients that run it.
        share: Their share of all clients.
    """

    name: str
    flops: int
    share: Fraction = Fraction(1)


@dataclass
class Round:
    """One down-broadcast, client work, and one up-sum.

    Its numbers are those of one client; where not all clients do the same, as in the
    tiers of a cohort, the mean over all clients, rounded up.

    Attributes:
        down: What each client receives.
        work: What each client computes.
        up: What each client adds to a sum.
        state_bytes: What each client must keep for later rounds when this one ends.
        returns: Whether a client that took part in an earlier round must take part.
    """

    down: list[Wire] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    up: list[Wire] = field(default_factory=list)
    state_bytes: int = 0
    returns: bool = False

    @property
    def uneven(self) -> bool:
        """Whether not all clients do the same."""
        return any(part.share < 1 for part in (*self.down, *self.work, *self.up))

    @property
    def bytes_down(self) -> int:
        """Bytes each client receives."""
        return _mean((w.nbytes, w.share) for w in self.down)

    @property
    def bytes_up(self) -> int:
        """Bytes each client sends."""
        return _mean((w.nbytes, w.share) for w in self.up)

    @property
    def flops(self) -> int:
        """Floating-point operations of one client."""
        return _mean((w.flops, w.share) for w in self.work)


def in_share(amount: int, share: Fraction) -> int | Fraction:
    """Return the mean over all clients of what this share of them has."""
    return amount if share == 1 else amount * share


def _mean(parts: Iterable[tuple[int, Fraction]]) -> int:
    return math.ceil(sum(in_share(*part) for part in parts))
