"""What ``fad.check`` tells of a program that passes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Aggregate:
    """One sum over clients: all that the server learns from them.

    Attributes:
        number: Its place among the program's sums, from 1.
        type: The type of the sum.
        map: What made the summed value: a map's name, or an argument.
        line: The source line that sums.
    """

    number: int
    type: str
    map: str
    line: str

    def __str__(self) -> str:
        return f"#{self.number} {self.type} of {self.map}, at {self.line}"


@dataclass(frozen=True)
class Received:
    """What each client receives from the server.

    Attributes:
        type: The type, per client.
        how: ``broadcast`` (the same for all), ``select`` (each the slices that its keys
            name), ``row`` (each its own row of a server array), or the primitive that
            joins it with a client value.
        line: The source line.
    """

    type: str
    how: str
    line: str

    def __str__(self) -> str:
        return f"{self.type} by {self.how}, at {self.line}"


@dataclass(frozen=True)
class Allowed:
    """A client value that reaches the server or a host by ``allow=``.

    Attributes:
        kind: The entry of ``allow`` that permits it.
        primitive: The equation's primitive, or ``return``.
        type: The client value's type.
        line: The source line.
    """

    kind: str
    primitive: str
    type: str
    line: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.type} by {self.primitive!r}, at {self.line}"


@dataclass(frozen=True)
class Output:
    """One output of the program.

    Attributes:
        path: Its path in what the program returns.
        type: Its type.
        where: Where it lives.
        axes: Its client axes: ``(0,)`` of a plain client value, ``(1,)`` where a loop
            stacked them; none at the server.
        depends: The sums that it depends on, in the order of the program.
        exposes: The client values that it depends on otherwise, by ``allow=``.
    """

    path: str
    type: str
    where: Literal["server", "clients"]
    axes: tuple[int, ...]
    depends: tuple[Aggregate, ...]
    exposes: tuple[Allowed, ...]


@dataclass(frozen=True)
class CheckReport:
    """A program that passed: what goes down, what comes up, what depends on what.

    Attributes:
        name: The function's name.
        outputs: For each output, where it lives and which sums it depends on.
        learns: What each client receives.
        reveals: The sums, which are all that the server learns.
        allowed: What passed by ``allow=`` alone.
        constants: The types of arrays that the function closes over and no map or sum
            reads: taken to be the server's.
    """

    name: str
    outputs: tuple[Output, ...]
    learns: tuple[Received, ...]
    reveals: tuple[Aggregate, ...]
    allowed: tuple[Allowed, ...]
    constants: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.name}: client values reach the server through fad.sum alone"]
        if self.allowed:
            lines[0] += ", but for what is allowed"
        lines += ["outputs:", *map(_output, self.outputs)]
        lines += ["the server learns:"]
        lines += [f"  {a}" for a in self.reveals] or ["  nothing"]
        lines += ["each client learns:"]
        lines += [f"  {r}" for r in self.learns] or ["  nothing"]
        if self.allowed:
            lines += ["allowed:", *(f"  {a}" for a in self.allowed)]
        if self.constants:
            lines += [
                f"closed over, taken as the server's: {', '.join(self.constants)}"
            ]
        return "\n".join(lines)


def _output(output: Output) -> str:
    sums = ", ".join(f"#{a.number}" for a in output.depends) or "no sum"
    moved = output.axes not in ((), (0,))
    axes = f" (axis {', '.join(map(str, output.axes))})" if moved else ""
    text = f"  {output.path}: {output.type} at the {output.where}{axes}, from {sums}"
    return text + (" and values allowed below" if output.exposes else "")
