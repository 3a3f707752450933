"""What the planner knows of a program: its values, its steps, its rounds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["server", "data", "sent", "made"]


@dataclass(eq=False)
class Value:
    """One value of a program, as the planner sees it.

    Attributes:
        kind: ``server``; at the clients: ``data`` (an argument), ``sent`` (broadcast),
            or ``made`` (computed there).
        nbytes: Its size, per client where it lives there.
        text: Its type, ``f32[3]``, per client likewise.
        parts: The values of a scan's iterations, where this is their stack.
        source: The server value that was sent.
        level: The number of sums upstream: the first round the value can take part in;
            -1 for what a client makes of its own data alone, at any time.
        pending: What to note in the round that first uses the value, where its own
            level leaves that open; shared by the outputs of one map.
    """

    kind: Kind
    nbytes: int
    text: str
    parts: "list[Value] | None" = None
    source: "Value | None" = None
    level: int = 0
    pending: list[Callable[[int], None]] = field(default_factory=list)

    @property
    def at_clients(self) -> bool:
        """Whether the value lives at the clients."""
        return self.kind != "server"


@dataclass(frozen=True)
class Wire:
    """One value on the wire: its type and its bytes per client."""

    text: str
    nbytes: int


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
        codes: Of a sum, what travels in the place of the summand, if not itself.
    """

    kind: Literal["send", "work", "sum", "gather", "local"]
    ins: list[Value]
    outs: list[Value]
    eqn: Any = None
    after: tuple[Value, ...] = ()
    codes: list[Wire] | None = None


@dataclass(frozen=True)
class Work:
    """One map at a client: the function's name and its floating-point operations."""

    name: str
    flops: int


@dataclass
class Round:
    """One down-broadcast, client work, and one up-sum.

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
    def bytes_down(self) -> int:
        """Bytes each client receives."""
        return sum(w.nbytes for w in self.down)

    @property
    def bytes_up(self) -> int:
        """Bytes each client sends."""
        return sum(w.nbytes for w in self.up)

    @property
    def flops(self) -> int:
        """Floating-point operations of one client."""
        return sum(w.flops for w in self.work)
