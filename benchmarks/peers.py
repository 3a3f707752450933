"""fad beside other frameworks, at the same work, with a parity check.

Every framework runs in its own environment and process and reads the same arrays, the
same params to start from and the same cohorts. They take rounds in turns. A round
starts from the clients' data in the host's memory and ends with the new params.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks import _hypergradients
from benchmarks._contest import Contender, contest, judge
from benchmarks._environments import OWN, Peer, select
from benchmarks._machine import cores, machine
from benchmarks._parity import ROUNDS, TOLERANCE
from benchmarks._report import Report
from benchmarks._workload import make

MODELS = ("mlp", "cnn")
TITLES = {"mlp": "MLP, 784-200-200-62", "cnn": "CNN, 1.2 M parameters"}
COLUMNS = {
    "peer": "framework",
    "versions": "versions",
    "first": "start to end of round 1, s",
    "seconds": "s/round: median (least; quartiles)",
    "ratio": "x fad",
    "cpu": "CPU s/round",
    "rss_mb": "peak memory, MB",
    "parity": "largest difference from plain JAX",
}
TEXT = """FedAvg on 400 synthetic clients of 20 to 50 examples (28 x 28, 62 classes,
labels Dirichlet 0.3), 100 clients a round by a fixed schedule, batch 10, one epoch, SGD
0.1 in stored order with the real, shorter last batch; the mean weighted by examples,
server step 1. All frameworks read the same arrays and take rounds in turns."""
DRJAX_CNN_LIMIT = 420


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--peers", help="drjax,fedjax,pfl,flwr; all without it")
    parser.add_argument("--models", default="mlp,cnn,hypergradient")
    parser.add_argument("--rounds", type=int, help="timed rounds: MLP 15, CNN 4")
    parser.add_argument(
        "--quick", action="store_true", help="40 clients, 10 a round, 3 rounds"
    )


def main(options: argparse.Namespace) -> bool:
    """Run the comparison; return whether everything that ran agrees."""
    peers = select(options.peers)
    models = options.models.split(",")
    unknown = [m for m in models if m not in (*MODELS, "hypergradient")]
    if unknown:
        raise SystemExit(
            f"--models: expected names among {','.join(MODELS)},hypergradient; "
            f"got {','.join(unknown)}"
        )
    if options.rounds is not None and options.rounds < 1:
        raise SystemExit(f"--rounds: expected at least 1, got {options.rounds}")
    asked = (options.peers, options.rounds)
    complete = asked == (None, None) and not options.quick
    agree = True
    for model in models:
        if model == "hypergradient":
            report, same = _hypergradients.run(peers, quick=options.quick)
        else:
            report, same = run(model, peers, rounds=options.rounds, quick=options.quick)
        agree &= same
        print(report.markdown())
        print(*report.write(complete=complete), sep="\n")
    return agree


def run(
    model: str, peers: Sequence[Peer], *, rounds: int | None, quick: bool
) -> tuple[Report, bool]:
    """Compare all on one model; return the report and whether they agree."""
    before = machine()
    rounds = rounds or (3 if quick else {"mlp": 15, "cnn": 4}[model])
    size = {"clients": 40, "cohort": 10} if quick else {}
    turns = max(rounds + 1, ROUNDS[model])
    workload = make(model, **size, rounds=turns)
    contenders = field_of(model, peers)
    contest(contenders, workload, task="fedavg", turns=turns, read_after=ROUNDS[model])
    agree = judge(contenders, TOLERANCE[model])
    rows = best_variants([c.row() for c in contenders])
    own = next(row for row in rows if row["peer"] == "fad")
    for row in rows:
        if row.get("median") and own.get("median"):
            row["ratio"] = row["median"] / own["median"]
    report = Report(
        name=f"peers_{model}",
        title=f"Frameworks beside fad: {TITLES[model]}",
        command=f"python -m benchmarks peers --models {model}",
        columns=COLUMNS,
        text=TEXT,
        rows=rows,
        notes=_notes(model, rows),
        machine=before,
        settings={
            "clients": len(workload.sizes),
            "cohort": int(workload.schedule.shape[1]),
            "timed_rounds": rounds,
            "real_batches": [workload.batches(i) for i in range(turns)],
            "parity_after_rounds": ROUNDS[model],
            "tolerance": TOLERANCE[model],
        },
    )
    return report, agree


def field_of(model: str, peers: Sequence[Peer]) -> list[Contender]:
    """Return the contenders, plain JAX first: it is the reference."""
    plain, fad = OWN["plain"], OWN["fad"]
    contenders = [Contender(plain, "plain JAX, by hand"), Contender(fad, "fad")]
    for peer in peers:
        if peer.name == "pfl":
            for threads in sorted({1, min(2, cores())}):
                label = f"pfl, {threads} thread{'s' * (threads > 1)}"
                contenders.append(Contender(peer, label, {"threads": threads}))
        elif peer.name == "drjax" and model == "cnn":
            contenders.append(
                Contender(
                    peer,
                    "drjax",
                    {"unroll": 5},
                    most=2,
                    limit=DRJAX_CNN_LIMIT,
                    note="one map_fn over the cohort, with the local steps unrolled: "
                    "in a scan, as documented, a round takes minutes; one timed round "
                    f"at most, of at most {DRJAX_CNN_LIMIT} s",
                )
            )
        else:
            contenders.append(Contender(peer, peer.name))
    return contenders


def best_variants(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the fastest of a framework's variants, which are labelled ``name, ...``.

    The others are kept in its ``also``. A row that failed loses to one that ran.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row["peer"].partition(",")[0]
        groups.setdefault(name, []).append(row)
    kept = []
    for group in groups.values():
        group.sort(key=lambda row: row.get("median", float("inf")))
        kept.append({**group[0], "also": group[1:]} if group[1:] else group[0])
    return kept


def _notes(model: str, rows: list[dict[str, Any]]) -> list[str]:
    notes = [f"{row['peer']}: {row['note']}." for row in rows if row["note"]]
    rounds = f"{ROUNDS[model]} round{'s' * (ROUNDS[model] > 1)}"
    notes.append(
        f"Parity: all params after {rounds}; at most {TOLERANCE[model]:.0e} is "
        "rounding."
    )
    notes.append(
        "CPU and memory are of the whole process tree; memory is the sum of resident "
        "sets, so that what processes share counts in each."
    )
    return notes
