"""Cohorts from 100,000 clients: their time beside a round's, and the memory held.

Everything is measured in one process of its own, cohorts and rounds taking turns.
"""

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._report import ROOT, Report
from benchmarks._timing import interleave

CLIENTS, EXAMPLES, PIXELS, COHORT = 100_000, 20, 28, 100
TURNS, TARGET, MEMORY = 30, 0.05, 1.10
COLUMNS = {
    "what": "what",
    "ms": "milliseconds: median (least)",
    "share": "of a round",
    "memory": "resident memory / raw arrays",
    "peak": "at the peak",
}
TEXT = f"""Cohorts by `fad.data.Federated.cohort` from {CLIENTS:,} clients of {EXAMPLES}
examples, images of {PIXELS} x {PIXELS} float32 with labels, in batches of 10: sampled,
shuffled, laid out, and put on the device, the round's key derived too. Each takes turns
with the round of the MLP in `peers`, which trains on {COHORT} clients of 20 to 50
examples; shares are medians over the turns. Targets: a cohort of {COHORT} in at most
{TARGET:.0%} of a round, and resident memory of at most {MEMORY} times the arrays."""


def main() -> None:
    """Measure, print the table, and write the results."""
    rows = [row for part in ("times", "memory") for row in _apart(part)]
    report = Report(
        name="data",
        title="Cohorts from many clients",
        command="python -m benchmarks data",
        columns=COLUMNS,
        text=TEXT,
        rows=rows,
        notes=[
            "`from_indices` gathers the rows of shuffled images of one byte a pixel. "
            "Its peak holds the arrays it was given and the new ones; the given ones "
            "can be dropped afterwards, as they are here.",
            f"The last lines train on the {COHORT} clients of {EXAMPLES} examples: two "
            "batches each, where the MLP benchmark has four on average.",
        ],
        settings={"target": TARGET, "memory": MEMORY, "turns": TURNS},
    )
    print(report.markdown())
    print(*report.write(complete=True), sep="\n")


def times(clients: int = CLIENTS, turns: int = TURNS) -> list[dict[str, Any]]:
    """Time cohorts and rounds in this process."""
    import jax
    import numpy as np

    from benchmarks._workload import make
    from benchmarks.workers.fad import Rounds
    from fad.data import Federated

    rng = np.random.default_rng(0)
    x = rng.random((clients * EXAMPLES, PIXELS, PIXELS), np.float32)
    y = rng.integers(0, 62, clients * EXAMPLES, np.int32)
    data = Federated({"x": x, "y": y}, np.arange(clients + 1) * EXAMPLES)
    rounds = Rounds(make("mlp", rounds=turns))
    key = jax.random.key(0)

    def cohort(turn: int, size: int = COHORT, **options: Any) -> None:
        made = data.cohort(
            jax.random.fold_in(key, turn), size, batch_size=10, **options
        )
        jax.block_until_ready(jax.device_put(made))

    def train(cohort: Any) -> None:
        jax.block_until_ready(rounds.step(rounds.params, cohort))

    at_hand = jax.device_put(data.cohort(key, COHORT, batch_size=10))
    contenders: dict[str, Callable[[int], Any]] = {
        f"cohort of {COHORT}": cohort,
        f"cohort of {COHORT}, by size": lambda i: cohort(i, sampling="size"),
        f"cohort of {COHORT}, by size, with replacement": lambda i: cohort(
            i, sampling="size", replace=True
        ),
        f"cohort of {COHORT}, half of the clients available": lambda i: cohort(
            i, available=np.full(clients, 0.5)
        ),
        f"a round of {EXAMPLES} examples a client, cohort at hand": lambda _: train(
            at_hand
        ),
    }
    with contextlib.ExitStack() as stack:
        for prefetch in (0, 1):
            cohorts = stack.enter_context(
                data.cohorts(key, COHORT, batch_size=10, prefetch=prefetch)
            )
            contenders[f"a round with its cohort, `prefetch={prefetch}`"] = (
                lambda _, cohorts=cohorts: train(next(cohorts))
            )
        # Each beside the round alone: in a run a cohort follows a round, and what
        # others leave in the caches and free in memory is no part of it.
        name = "a round of the MLP benchmark"
        pairs = [
            _table({name: rounds.turn, what: run}, turns)
            for what, run in contenders.items()
        ]
    large = {f"cohort of {clients // 10:,}": lambda i: cohort(i, clients // 10)}
    pairs.append(_table({name: rounds.turn, **large}, 6))
    return [pairs[0][0], *(pair[1] for pair in pairs)]


def _table(
    contenders: dict[str, Callable[[int], Any]], turns: int
) -> list[dict[str, Any]]:
    """Time the contenders; the first is what the others are compared with."""

    def timed(run: Callable[[int], Any]) -> Callable[[int], float]:
        def seconds(turn: int) -> float:
            start = time.perf_counter()
            run(turn)
            return time.perf_counter() - start

        return seconds

    for run in contenders.values():
        run(0)  # It compiles.
    walls = interleave({k: timed(run) for k, run in contenders.items()}, range(turns))
    rows, rounds = [], next(iter(walls.values()))
    for name, wall in walls.items():
        ratios = [w / r for w, r in zip(wall, rounds, strict=True)]
        rows.append(
            {
                "what": name,
                "ms": f"{1e3 * statistics.median(wall):.3g} ({1e3 * min(wall):.3g})",
                "share": f"{statistics.median(ratios):.2%}",
                "walls": wall,
            }
        )
    return rows


def memory(clients: int = CLIENTS) -> list[dict[str, Any]]:
    """Compare the memory of this process with its arrays."""
    import numpy as np

    from fad.data import Federated

    rows = clients * EXAMPLES
    before = _resident()
    x = np.random.default_rng(0).integers(0, 256, (rows, PIXELS**2), np.uint8)
    data = Federated({"x": x}, np.arange(clients + 1) * EXAMPLES)
    direct = (_resident() - before) / x.nbytes
    direct_peak = (_peak() - before) / x.nbytes
    del data
    order = np.random.default_rng(1).permutation(rows)
    parts = list(np.sort(order.reshape(clients, EXAMPLES), axis=1))
    data = Federated.from_indices({"x": x}, parts)
    raw = data.examples["x"].nbytes
    peak = (_peak() - before) / raw
    del x, order, parts
    gathered = (_resident() - before) / raw
    return [
        {
            "what": "`Federated` of arrays at hand",
            "memory": direct,
            "peak": direct_peak,
        },
        {"what": "`Federated.from_indices`", "memory": gathered, "peak": peak},
    ]


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM"))


def _apart(part: str) -> list[dict[str, Any]]:
    """Run ``times`` or ``memory`` in a process of its own."""
    code = f"import json, benchmarks.data as d; print(json.dumps(d.{part}()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
