"""What ``fad.jit`` made of a program."""

from dataclasses import dataclass

from fad.compile._estimate import Estimate


@dataclass(frozen=True)
class SweepReport:
    """One sweep over the clients.

    Attributes:
        clients: Their number.
        chunk: How many of them run at a time.
        work: The names of the functions that a client runs, in order.
        where: The loop around it, if any.
        sums: Number of sums that share it.
        stored: Number of client values stored, ``[n, *s]``.
        products: Matrix products that take a sum over the chunk's clients with them.
        estimate: What one client's work costs, where the cost model was asked.
    """

    clients: int
    chunk: int
    work: tuple[str, ...]
    where: str
    sums: int
    stored: int
    products: int
    estimate: Estimate | None

    def __str__(self) -> str:
        """Return one line."""
        names = ", ".join(dict.fromkeys(self.work)) or "no map"
        line = (
            f"{self.clients} clients, {self.chunk} at a time: {names}; {self.sums} sums"
        )
        if self.stored:
            line += f"; {self.stored} client values stored"
        if self.products:
            line += f"; {self.products} matrix products over all clients of a chunk"
        return f"{line} (in {self.where})" if self.where else line


@dataclass(frozen=True)
class Unstreamed:
    """A federated equation that runs over all clients at once.

    Attributes:
        name: The function that the clients run, or the primitive.
        where: The loop around it, if any.
        why: The reason.
    """

    name: str
    where: str
    why: str


class Report:
    """What the pass notes as it runs."""

    def __init__(self):
        self.sweeps: list[SweepReport] = []
        self.unstreamed: list[Unstreamed] = []

    def mark(self) -> tuple[int, int]:
        """Return how much is noted."""
        return len(self.sweeps), len(self.unstreamed)

    def back_to(self, mark: tuple[int, int]) -> None:
        """Forget what was noted since."""
        del self.sweeps[mark[0] :], self.unstreamed[mark[1] :]


@dataclass(frozen=True)
class Explanation:
    """What ``fad.jit`` made of a program; print it.

    Attributes:
        name: The function.
        why: How the chunks were chosen.
        sweeps: The sweeps, in the order in which they were traced.
        unstreamed: What could not be streamed, with the reason.
        devices: Devices that share the clients.
    """

    name: str
    why: str
    sweeps: tuple[SweepReport, ...]
    unstreamed: tuple[Unstreamed, ...]
    devices: int

    def __str__(self) -> str:
        """Return a line per sweep and per map that is not streamed."""
        many = f", clients over {self.devices} devices" if self.devices > 1 else ""
        lines = [f"fad.jit({self.name}): {self.why}{many}"]
        lines += [f"  sweep {i}: {s}" for i, s in enumerate(self.sweeps, 1)]
        for u in self.unstreamed:
            where = f" (in {u.where})" if u.where else ""
            lines.append(f"  NOT streamed: {u.name}{where}: {u.why}")
        return "\n".join(lines)
