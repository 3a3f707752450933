"""CPU seconds and peak memory of a process and all it started, from ``/proc``.

Where there is no ``/proc`` the answers are None and the tables say "not measured".
"""

import os
import threading
from pathlib import Path

PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float | None:
    """Return the user and system seconds of a tree, of ended children too."""
    if not PROC.exists():
        return None
    ticks = 0
    for process in tree(pid):
        fields = _stat(process)
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


class PeakMemory:
    """Watch the memory of a process tree until ``stop``; ``peak`` is in bytes.

    The resident sets are summed, so what processes share counts in each;
    ``shared_once`` is the peak of the proportional sets, in which it counts once.
    """

    def __init__(self, pid: int, *, every: float = 0.05):
        self.peak: int | None = None
        self.shared_once: int | None = None
        self._pid, self._every = pid, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if PROC.exists():
            self._thread.start()

    def stop(self) -> None:
        """Look a last time and end."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Take the proportional sets; slower, so once per round."""
        sizes = [_kib(p, "smaps_rollup", "Pss:") for p in tree(self._pid)]
        self.shared_once = max(self.shared_once or 0, sum(sizes)) or None

    def _watch(self) -> None:
        turn, members = 0, [self._pid]
        while not self._ended.wait(self._every):
            if turn % 20 == 0:  # Listing all processes costs more than reading a few.
                members = tree(self._pid)
            turn += 1
            # One process knows its own peak; a tree's is the largest sum seen.
            field = "VmHWM:" if len(members) == 1 else "VmRSS:"
            total = sum(_kib(p, "status", field) for p in members)
            self.peak = max(self.peak or 0, total)


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/<pid>/stat`` after the name; none if it ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _kib(pid: int, file: str, field: str) -> int:
    try:
        lines = (PROC / str(pid) / file).read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith(field)), 0)
