"""The gradient of a validation loss by two learning rates, through some rounds."""

from collections.abc import Sequence

import numpy as np

from benchmarks._contest import Contender, contest
from benchmarks._environments import OWN, Peer
from benchmarks._machine import machine
from benchmarks._parity import Parity
from benchmarks._report import Report
from benchmarks._workload import make

ROUNDS, TOLERANCE = 4, 1e-8
COLUMNS = {
    "peer": "framework",
    "versions": "versions",
    "seconds": "s/gradient: median (least; quartiles)",
    "ratio": "x fad, reverse",
    "rss_mb": "peak memory, MB",
    "temp_mb": "XLA's temporary memory, MB",
    "parity": "largest relative difference in float64",
}
TEXT = """The derivatives of a validation loss by the server's and by the clients'
learning rate, through {rounds} rounds of FedAvg: the MLP and the clients of
`peers --models mlp`, {cohort} clients a round, written out one round after another."""


def run(peers: Sequence[Peer], *, quick: bool) -> tuple[Report, bool]:
    """Compare all that can differentiate; return the report and whether they agree."""
    before = machine()
    size = {"clients": 40, "cohort": 10} if quick else {}
    workload = make("mlp", **size, rounds=ROUNDS)
    timed = field_of(peers, x64=False)
    turns = 3 if quick else 6
    contest(timed, workload, task="hypergradient", turns=turns, read_after=1)
    exact = field_of(peers, x64=True)
    contest(exact, workload, task="hypergradient", turns=1, read_after=1)
    reference = exact[0].found
    for one, double in zip(timed, exact, strict=True):
        if reference is not None and double.found is not None:
            one.parity = agreement(double.found, reference)
    rows = [contender.row() for contender in timed]
    for row in rows:
        temporary = row["facts"].get("temp_bytes")
        row["temp_mb"] = None if temporary is None else temporary / 1e6
        if row.get("median") and rows[0].get("median"):
            row["ratio"] = row["median"] / rows[0]["median"]
    cohort = int(workload.schedule.shape[1])
    report = Report(
        name="hypergradient",
        title=f"Hypergradients through {ROUNDS} rounds",
        command="python -m benchmarks peers --models hypergradient",
        columns=COLUMNS,
        text=TEXT.format(rounds=ROUNDS, cohort=cohort),
        rows=rows,
        notes=[
            "Times and memory are in float32. The derivatives are compared in float64, "
            "since float32 alone moves the clients' by some per cent.",
            "pfl and Flower cannot differentiate through a round; FedJAX cannot "
            "through two, nor by the clients' learning rate.",
        ],
        settings={"rounds": ROUNDS, "cohort": cohort, "tolerance": TOLERANCE},
        machine=before,
    )
    agree = all(c.parity is None or c.parity.passed for c in timed)
    return report, agree


def field_of(peers: Sequence[Peer], *, x64: bool) -> list[Contender]:
    """Return the contenders; the first is the reference."""
    options = {"rounds": ROUNDS, "x64": x64}
    fad = OWN["fad"]
    contenders = [
        Contender(fad, "fad, reverse", {**options, "mode": "reverse"}),
        Contender(fad, "fad, auto", {**options, "mode": "auto"}),
    ]
    for peer in peers:
        if peer.name == "drjax":
            contenders.append(Contender(peer, "drjax", dict(options)))
    return contenders


def agreement(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> Parity:
    """Return the largest relative difference."""
    differences = [
        float(np.abs(found[name] - value) / np.abs(value))
        for name, value in reference.items()
    ]
    return Parity(float(np.max(differences)), TOLERANCE)
