"""How memory and time grow with the clients, the rounds and the devices."""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _figures
from benchmarks._environments import (
    FOLDER,
    OWN,
    PEERS,
    InstallError,
    Peer,
    python_of,
)
from benchmarks._machine import cores, machine
from benchmarks._report import Report, pages_folder
from benchmarks._timing import Spread
from benchmarks._worker import Worker, WorkerError

CLIENTS = (64, 256, 1024, 4096, 16384)
ROUNDS = (1, 4, 16, 64)
DEVICES = (1, 2, 4, 8)
FORCED = "--xla_force_host_platform_device_count"
LIMIT = 400
COLUMNS = {
    "series": "series",
    "at": "{study}",
    "temp_mb": "XLA's temporary memory, MB",
    "argument_mb": "its arguments, MB",
    "rss_mb": "peak memory of the process, MB",
    "seconds": "s: median (least; quartiles)",
    "compile_seconds": "s to compile",
    "difference": "relative difference from the first series",
}
TEXT = """{question} FedAvg with full participation, rounds in one `lax.scan`: each
client takes 5 SGD steps on batches of 10 (MLP 784-64-10, 50,890 parameters). Reverse
mode is the loss on 500 points with its derivatives by both learning rates; forward
mode, by the server's. One process per point."""


@dataclass(frozen=True)
class Series:
    """A line of a figure: one way to compile or differentiate.

    Attributes:
        name: Its label.
        peer: What runs it.
        options: Of the worker's task, beside what the study varies.
        most: The largest value tried: what tiles over clients would fill the memory.
    """

    name: str
    peer: Peer
    options: dict[str, Any] = field(default_factory=dict)
    most: int | None = None


@dataclass(frozen=True)
class Study:
    """One quantity is varied, for several series.

    Attributes:
        name: Of the quantity.
        question: The first sentence of the page.
        values: What it takes.
        series: The first is the reference of the check.
    """

    name: str
    question: str
    values: Sequence[int]
    series: Sequence[Series]


def studies(*, quick: bool) -> list[Study]:
    """Return the three studies."""
    fad, drjax = OWN["fad"], PEERS["drjax"]
    none, reverse = {"derivative": "none"}, {"derivative": "reverse"}
    forward, kept = {"derivative": "forward"}, {"checkpoint": True}
    by_clients = [
        Series("fad.jit", fad, none),
        Series("fad.jit, reverse", fad, reverse),
        Series("jax.jit", fad, {**none, "plain_jit": True}, most=4096),
        Series("jax.jit, reverse", fad, {**reverse, "plain_jit": True}, most=1024),
    ]
    by_rounds = [
        Series("fad, reverse", fad, reverse),
        Series("fad, reverse, a checkpoint per round", fad, {**reverse, **kept}),
        Series("DrJAX, reverse", drjax, reverse),
        Series("DrJAX, reverse, a checkpoint per round", drjax, {**reverse, **kept}),
        Series("fad, forward", fad, forward),
        Series("DrJAX, forward", drjax, forward),
    ]
    by_devices = [
        Series("fad.jit", fad, none),
        Series("fad.jit, reverse", fad, reverse),
    ]
    few = 2 if quick else None
    return [
        Study(
            "clients", "How a round grows with its clients.", CLIENTS[:few], by_clients
        ),
        Study("rounds", "How 64 clients grow with rounds.", ROUNDS[:few], by_rounds),
        Study(
            "devices",
            f"How a round of 1,024 clients is shared by virtual devices, on {cores()} "
            "cores: memory is per device, and time cannot fall below what the cores "
            "allow.",
            DEVICES[:few],
            by_devices,
        ),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--studies", default="clients,rounds,devices")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of a point")
    parser.add_argument("--quick", action="store_true", help="two values of each study")


def main(options: argparse.Namespace) -> bool:
    """Run the studies; return whether all series agree."""
    known = {study.name: study for study in studies(quick=options.quick)}
    chosen = options.studies.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(
            f"--studies: expected names among {','.join(known)}; "
            f"got {','.join(unknown)}"
        )
    agree = True
    for name in chosen:
        report = run(known[name], repeats=options.repeats, complete=not options.quick)
        agree &= all(row.get("agrees", True) for row in report.rows)
        print(report.markdown())
        print(*report.write(complete=not options.quick), sep="\n")
    return agree


def run(study: Study, *, repeats: int, complete: bool) -> Report:
    """Measure every point of a study and draw it."""
    before = machine()
    rows = list(_rows(study, repeats))
    figure = f"scale_{study.name}.png"
    _figures.draw(rows, study.name, pages_folder(complete) / figure)
    return Report(
        name=f"scale_{study.name}",
        title=f"Scaling with {study.name}",
        command=f"python -m benchmarks scale --studies {study.name}",
        columns={k: v.format(study=study.name) for k, v in COLUMNS.items()},
        text=TEXT.format(question=study.question),
        rows=rows,
        notes=["A derivative may differ by rounding, 1e-3 relative in float32."],
        settings={"values": list(study.values), "repeats": repeats},
        figure=figure,
        machine=before,
    )


def _rows(study: Study, repeats: int) -> Iterable[dict[str, Any]]:
    references: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for series in study.series:
        failed = None
        for value in study.values:
            if series.most is not None and value > series.most:
                continue
            row: dict[str, Any] = {"series": series.name, "at": value}
            if failed is None:
                try:
                    found, values = point(series, study.name, value, repeats)
                    key = (value, series.options["derivative"])
                    reference = references.setdefault(key, values)
                    row |= found | _compared(values, reference)
                except (WorkerError, InstallError) as error:
                    failed = row["failure"] = str(error)
                    print(f"!!! {series.name}, {value}: {error}", flush=True)
            if failed is not None:  # Larger ones would fail too, and slowly.
                row["seconds"] = f"**{failed}**"
            print("  " + ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            yield row


def point(
    series: Series, study: str, value: int, repeats: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure one point in a fresh process; return its row and its numbers."""
    options = {"clients": 64, "rounds": 1, **series.options}
    env = {}
    if study == "devices":
        options |= {"clients": 1024, "mesh_devices": value}
        env = {"XLA_FLAGS": f"{FORCED}={value}"}
    else:
        options[study] = value
    python = python_of(series.peer)
    with tempfile.TemporaryDirectory(dir=_logs()) as folder:
        log = Path(folder, "log")
        with Worker(series.peer.name, python, log, env) as worker:
            worker.start("scale", None, limit=LIMIT, **options)
            worker.turn(0, limit=LIMIT)
            walls = [worker.turn(i, limit=LIMIT)[0] for i in range(1, repeats + 1)]
            values, facts = worker.result(), worker.facts()
    spread = Spread.of(walls)
    peak = worker.memory.peak
    row = {
        "temp_mb": facts["temp_bytes"] / 1e6,
        "argument_mb": facts["argument_bytes"] / 1e6,
        "rss_mb": None if peak is None else peak / 1e6,
        "seconds": str(spread),
        "median": spread.median,
        "walls": walls,
        "compile_seconds": facts["compile_seconds"],
    }
    return row, values


def _compared(
    values: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> dict[str, Any]:
    difference = max(
        float(np.abs(values[k] - r) / max(np.abs(r), 1e-30))
        for k, r in reference.items()
    )
    return {"difference": difference, "agrees": bool(difference < 1e-3)}


def _logs() -> Path:
    folder = FOLDER / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
