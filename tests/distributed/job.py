"""Start the processes of one program on this host, and see how they end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
RESTART = "Start the run again from its last checkpoint"


class Job:
    """Processes that run the worker in one mode; none outlives the ``with`` block.

    Another ``module`` than the worker has its own arguments.
    """

    def __init__(
        self,
        folder: Path,
        *args: str,
        processes: int = 2,
        module: str = "tests.distributed.worker",
    ):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._logs = [folder / f"{p}of{processes}.log" for p in range(processes)]
        self.processes = []
        for p, log in enumerate(self._logs):
            with log.open("w") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *args],
                    cwd=ROOT,
                    env=environment(f"127.0.0.1:{port}", processes, p),
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def output(self, process: int) -> str:
        """Return what a process has printed so far."""
        return self._logs[process].read_text()

    def wait(self, process: int, seconds: float = 60) -> int:
        """Return the exit status of a process that ends by itself."""
        return self.processes[process].wait(seconds)

    def ends_well(self) -> list[str]:
        """Wait for all processes, and return what each printed."""
        codes = [self.wait(p) for p in range(len(self.processes))]
        texts = [self.output(p) for p in range(len(self.processes))]
        assert not any(codes), texts
        return texts

    def reaches(self, process: int, text: str, seconds: float = 60) -> None:
        """Wait until a process has printed ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self.output(process):
            assert self.processes[process].poll() is None, self.output(process)
            assert time.monotonic() < deadline, self.output(process)
            time.sleep(0.05)

    def says(self, process: int, text: str, seconds: float = 10) -> None:
        """Check that a process, ended or not, has printed ``text``, or its witness."""
        deadline = time.monotonic() + seconds
        while text not in self.output(process):
            assert time.monotonic() < deadline, self.output(process)
            time.sleep(0.05)

    def send(self, process: int, number: signal.Signals) -> None:
        """Send a signal to a process."""
        self.processes[process].send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def environment(coordinator: str, processes: int, process: int) -> dict[str, str]:
    """Return the environment of one process, with nothing of the test's own JAX."""
    mine = ("FAD_", "JAX_", "XLA_", "SLURM_", "OMPI_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
    return kept | {
        "FAD_COORDINATOR": coordinator,
        "FAD_NUM_PROCESSES": str(processes),
        "FAD_PROCESS_ID": str(process),
        "FAD_LOCAL_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
    }
