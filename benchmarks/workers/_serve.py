"""The worker's side of the conversation: one JSON line in, one JSON line out.

Commands: ``start`` (a task and a workload), ``turn`` (run it once more; answers the
seconds), ``result`` (write arrays to a file), ``facts``, ``stop``. NumPy and the
standard library alone, since each framework's environment imports it.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from benchmarks._workload import Params, Workload, load


class Runner(Protocol):
    """What a worker starts: something to time, turn by turn."""

    def turn(self, i: int) -> None:
        """Do the work of turn ``i``, all of it before returning."""
        ...

    def result(self) -> Params:
        """Return what was computed so far, by name."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what else there is to report, as JSON."""
        ...


Start = Callable[..., Runner]


def serve(tasks: Mapping[str, Start]) -> None:
    """Answer commands until ``stop`` or the end of the input.

    Args:
        tasks: By name, ``start(workload, **options) -> Runner``, or without the
            workload where there is none.
    """
    # Frameworks print; what they print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = _Session(tasks)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = getattr(session, message.pop("command"))(**message)
        except Exception as error:
            traceback.print_exc()
            first = str(error).strip().partition("\n")[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        print(json.dumps(answer), file=answers, flush=True)
        if "stopped" in answer:
            break


class _Session:
    def __init__(self, tasks: Mapping[str, Start]):
        self.tasks = tasks

    def start(self, task: str, workload: str | None, options: dict[str, Any]) -> dict:
        arguments = [] if workload is None else [load(workload)]
        self.runner = self.tasks[task](*arguments, **options)
        return {}

    def turn(self, i: int) -> dict:
        start = time.perf_counter()
        self.runner.turn(i)
        return {"seconds": time.perf_counter() - start}

    def result(self, path: str) -> dict:
        arrays: Any = self.runner.result()
        np.savez(path, **arrays)
        return {}

    def facts(self) -> dict:
        return self.runner.facts()

    def stop(self) -> dict:
        close = getattr(getattr(self, "runner", None), "close", None)
        if close is not None:
            close()
        return {"stopped": True}


def layers(workload: Workload) -> dict[str, dict[str, np.ndarray]]:
    """Return the params by layer: ``{"dense0": {"kernel": ..., "bias": ...}}``."""
    nested: dict[str, dict[str, np.ndarray]] = {}
    for name, value in workload.params.items():
        layer, _, part = name.partition("/")
        nested.setdefault(layer, {})[part] = value
    return nested


def flat(nested: Mapping[str, Mapping[str, Any]]) -> Params:
    """Undo ``layers``."""
    return {
        f"{layer}/{part}": np.asarray(value)
        for layer, parts in nested.items()
        for part, value in parts.items()
    }
