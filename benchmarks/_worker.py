"""The parent's side of a worker: start it, give it turns, read what it found."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._processes import PeakMemory, cpu_seconds, tree
from benchmarks._workload import Params

ROOT = Path(__file__).resolve().parents[1]
# Without these Flower and Ray report on their use.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}


class WorkerError(RuntimeError):
    """A worker failed, or took longer than it was given."""


class Worker:
    """A framework in its own process.

    Args:
        module: The module to run, in ``benchmarks.workers``.
        python: The interpreter.
        log: Where its standard error goes.
        env: Environment variables on top of this process's.
    """

    def __init__(
        self, module: str, python: str, log: Path, env: Mapping[str, str] | None = None
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **ENVIRONMENT, **(env or {}), "PYTHONPATH": str(ROOT)}
        self.name, self.log = module, log
        self._started = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.workers.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=env,
                start_new_session=True,
            )
        self.memory = PeakMemory(self._process.pid)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(
        self, task: str, workload: Path | None, *, limit: float = 600, **options: Any
    ) -> None:
        """Prepare a task, on a workload or on none."""
        path = None if workload is None else str(workload)
        message = {"task": task, "workload": path, "options": options}
        self._ask("start", limit, **message)

    def turn(self, i: int, *, limit: float = 600) -> tuple[float, float | None]:
        """Run a turn; return its wall seconds and the tree's CPU seconds."""
        before = cpu_seconds(self._process.pid)
        wall = self._ask("turn", limit, i=i)["seconds"]
        after = cpu_seconds(self._process.pid)
        self.memory.look()
        cpu = None if before is None or after is None else after - before
        return wall, cpu

    def age(self) -> float:
        """Return the seconds since the process was started."""
        return time.perf_counter() - self._started

    def result(self, *, limit: float = 60) -> Params:
        """Return the arrays it computed."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "result.npz")
            self._ask("result", limit, path=str(path))
            with np.load(path) as file:
                return {name: file[name] for name in file.files}

    def facts(self, *, limit: float = 60) -> dict[str, Any]:
        """Return what else it reports."""
        return self._ask("facts", limit)

    def stop(self) -> None:
        """End it and all it started."""
        self.memory.stop()
        children = tree(self._process.pid)
        if self._process.poll() is None:
            try:
                self._ask("stop", 20)
                self._process.wait(10)
            except (WorkerError, subprocess.TimeoutExpired):
                pass
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> "Worker":
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End it."""
        self.stop()

    def _ask(self, command: str, limit: float, **message: Any) -> dict[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(
                json.dumps({"command": command, **message}) + "\n"
            )
            self._process.stdin.flush()
            answer = json.loads(self._lines.get(timeout=limit) or '{"error": "ended"}')
        except queue.Empty:
            text = f"{command} not done in {limit:.0f} s, stopped"
            raise WorkerError(f"{self.name}: {text}") from None
        except BrokenPipeError:
            answer = {"error": "ended"}
        if answer.get("error") == "ended":
            answer["error"] = f"the process ended: {self._last_line()}"
        if "error" in answer:
            raise WorkerError(f"{self.name}: {command}: {answer['error']}")
        return answer

    def _last_line(self) -> str:
        lines = self.log.read_text().strip().splitlines()
        return lines[-1] if lines else "nothing on its standard error"

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")
