"""Frameworks at the same work, each in its process, taking turns."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._environments import FOLDER, InstallError, Peer, python_of, versions_of
from benchmarks._parity import Parity, compare
from benchmarks._timing import Spread, interleave
from benchmarks._worker import Worker, WorkerError
from benchmarks._workload import Params, Workload


@dataclass
class Contender:
    """A framework with its options, and what was found about it.

    Attributes:
        peer: The framework.
        label: Its name in the table.
        options: Passed to its worker's task.
        most: The most turns it is given, the first one included.
        limit: The seconds it has for a turn.
        note: What a reader must know.
        failure: Why it has no numbers.
        walls: Wall seconds of its turns, but for the first, which compiles.
        cpus: CPU seconds of the same.
    """

    peer: Peer
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    most: int | None = None
    limit: float = 600
    note: str = ""
    failure: str | None = None
    versions: str | None = None
    worker: Worker | None = None
    first: float | None = None
    walls: list[float] = field(default_factory=list)
    cpus: list[float | None] = field(default_factory=list)
    found: Params | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    parity: Parity | None = None

    def open(self, task: str, workload: Path, logs: Path) -> None:
        """Install it, start it, and let it take turn 0; failures are kept."""
        try:
            python = python_of(self.peer)
            self.versions = versions_of(self.peer, python)
        except InstallError as error:
            self.fail(f"not installed: {error}")
            return
        log = logs / f"{self.peer.name}.log"
        self.worker = Worker(self.peer.name, python, log)
        try:
            self.worker.start(task, workload, **self.options)
            self.worker.turn(0, limit=self.limit)
        except WorkerError as error:
            self.fail(str(error))
            return
        self.first = self.worker.age()
        print(f"  {self.label}: first turn after {self.first:.1f} s", flush=True)

    def turn(self, i: int) -> float | None:
        """Take a turn, unless it failed or has had its share."""
        over = self.most is not None and i >= self.most
        if self.failure is not None or self.worker is None or over:
            return None
        try:
            wall, cpu = self.worker.turn(i, limit=self.limit)
        except WorkerError as error:
            self.fail(str(error))
            return None
        self.walls.append(wall)
        self.cpus.append(cpu)
        return wall

    def read(self) -> None:
        """Fetch what it has computed so far."""
        if self.failure is None and self.worker is not None:
            try:
                self.found, self.facts = self.worker.result(), self.worker.facts()
            except WorkerError as error:
                self.fail(str(error))

    def fail(self, reason: str) -> None:
        """Keep a failure, say it loudly, and end the process."""
        self.failure = reason
        print(f"!!! {self.label}: {reason}", flush=True)
        self.close()

    def close(self) -> None:
        """End its process."""
        if self.worker is not None:
            self.worker.stop()

    def row(self) -> dict[str, Any]:
        """Return its line of the table."""
        row: dict[str, Any] = {"peer": self.label, "versions": self.versions}
        row["note"] = self.note or self.peer.note
        if self.worker is not None:
            row["rss_mb"] = _mb(self.worker.memory.peak)
            row["shared_once_mb"] = _mb(self.worker.memory.shared_once)
        row["parity"] = None if self.parity is None else str(self.parity)
        row["first"] = self.first
        row["facts"] = self.facts
        if self.failure is not None:
            return {**row, "seconds": f"**{self.failure}**", "failure": self.failure}
        if self.walls:
            spread = Spread.of(self.walls)
            row |= {"seconds": str(spread), "spread": spread._asdict()}
            row |= {"walls": self.walls, "median": spread.median}
        cpus = [cpu for cpu in self.cpus if cpu is not None]
        row["cpu"] = sum(cpus) / len(cpus) if cpus else None
        return row


def contest(
    contenders: Sequence[Contender],
    workload: Workload,
    *,
    task: str,
    turns: int,
    read_after: int,
) -> None:
    """Let all take the first turn one by one, and the others in turns.

    Args:
        contenders: They are changed: what was found stands in them.
        workload: What they work on.
        task: The task of the workers.
        turns: How many, the first one included.
        read_after: The number of turns, at least 1, after which results are read.
    """
    logs = FOLDER / "logs" / f"{task}-{workload.model}"
    with saved(workload) as path, contextlib.ExitStack() as stack:
        for k, contender in enumerate(contenders):
            stack.callback(contender.close)
            contender.open(task, path, logs / str(k))
        by_label = {c.label: c.turn for c in contenders}
        interleave(by_label, range(1, read_after))
        for contender in contenders:
            contender.read()
        interleave(by_label, range(read_after, turns))


def judge(contenders: Sequence[Contender], tolerance: float) -> bool:
    """Compare all with the first; return whether all that ran agree."""
    reference = contenders[0].found
    if reference is None:
        raise RuntimeError(
            f"{contenders[0].label}, the reference of the parity check, gave no "
            f"result: {contenders[0].failure}"
        )
    for contender in contenders:
        if contender.found is not None:
            contender.parity = compare(contender.found, reference, tolerance=tolerance)
            if not contender.parity.passed:
                print(f"!!! {contender.label}: parity {contender.parity}", flush=True)
    return all(c.parity is None or c.parity.passed for c in contenders)


@contextlib.contextmanager
def saved(workload: Workload) -> Iterator[Path]:
    """Keep a workload in a file for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "workload.npz")
        workload.save(path)
        yield path


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6)
