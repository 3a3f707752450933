"""A program whose values have their places.

A value's *level* is the number of sums upstream. All sums of one level share one sweep
over the clients. A client value that a later level needs is made again there, unless it
is small, the user asked to store it, or remaking it would chain through more than one
level (a client's state); then it is stored, ``[n, *s]``.
"""

from dataclasses import dataclass, field
from typing import Any

from fad.compile._flatten import Eqn, Ref
from fad.plan._graph import nbytes

SMALL = 4  # bytes per client that are stored rather than made again


@dataclass(eq=False, repr=False)
class Step:
    """One equation with its place.

    Attributes:
        kind: ``send``, ``map``, ``sum``, ``row``, ``fill``, ``barrier``, ``loop``
            (a scan, cond or while that communicates) or ``server``.
        eqn: The equation.
        level: The phase in which it runs; a sum runs in the sweep that ends it.
        n: Number of clients, for what clients do.
        subs: The programs inside a loop.
        work: One client's part of a ``row``.
        why: Why a federated equation is not streamed, if so.
    """

    kind: str
    eqn: Eqn
    level: int
    n: int = 0
    subs: "list[Program]" = field(default_factory=list)
    work: Any = None
    why: str = ""


@dataclass(eq=False, repr=False)
class Program:
    """A placed program.

    Attributes:
        inputs: Its inputs.
        steps: Its equations with their places.
        outputs: Its outputs.
        late: Which outputs are client values to be made later.
        levels: Number of phases.
        kept: Client values that are stored when they are made.
    """

    inputs: list[Ref]
    steps: list[Step]
    outputs: list[Ref]
    late: list[bool]
    levels: int
    kept: list[Ref]


class Values:
    """Decides which client values are stored.

    Attributes:
        kept: Those that are, by ``id``.
    """

    def __init__(self):
        self.kept: dict[int, Ref] = {}

    def store(self, ref: Ref) -> int:
        """Have a value as an array; return the first phase in which it can be read."""
        if not ref.client or ref.cheap:
            return ref.level
        ref.keep = True
        self.kept[id(ref)] = ref
        return ref.level + 1

    def read(self, ref: Ref, level: int) -> bool:
        """Let a client read a value at ``level``; say whether it is made again."""
        if not ref.client or ref.cheap or ref.keep or ref.level == level:
            return False
        small = nbytes(ref.aval) <= SMALL * ref.n and not ref.depth
        if ref.crossing or ref.pinned or small:
            self.store(ref)
            return False
        return True

    def made(self, eqn: Eqn, n: int, level: int) -> None:
        """Mark the results of client work."""
        crossing = [self.read(ref, level) for ref in eqn.ins]
        for ref in eqn.outs:
            ref.client, ref.n, ref.level = True, n, level
            ref.crossing = any(crossing)
            ref.pinned = eqn.eqn.params.get("remat") is False and eqn.name == "fad_map"
