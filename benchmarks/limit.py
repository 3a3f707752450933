"""How near fad is to the floor: the same steps by hand, and the machine's products."""

import argparse
import statistics
from typing import Any

from benchmarks._contest import Contender, contest, judge
from benchmarks._environments import OWN
from benchmarks._parity import ROUNDS, TOLERANCE
from benchmarks._report import Report
from benchmarks._workload import BATCH, Workload, flops_of_step, make

TARGET = 1.10
COLUMNS = {
    "model": "model",
    "fad": "fad, s/round: median (least; quartiles)",
    "plain": "by hand, s/round",
    "ratio": "fad / by hand",
    "fad_gflops": "fad, GFLOP/s",
    "fraction": "of the matrix-product rate",
    "plain_fraction": "by hand, of that rate",
    "parity": "largest difference",
}
TEXT = """One round of the workload of `peers`, by fad and by a loop written by hand in
plain JAX that takes the same SGD steps and does nothing else. The two, and a product of
two 2048 x 2048 matrices, take turns. The ratio is the median over rounds of fad's time
by the loop's in the same turn; the target is at most {target:.2f}."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--models", default="mlp,cnn")
    parser.add_argument("--rounds", type=int, help="timed rounds: MLP 30, CNN 8")
    parser.add_argument(
        "--quick", action="store_true", help="40 clients, 10 a round, 3 rounds"
    )


def main(options: argparse.Namespace) -> bool:
    """Measure; return whether the two agree."""
    report = Report(
        name="limit",
        title="fad beside the floor",
        command="python -m benchmarks limit",
        columns=COLUMNS,
        text=TEXT.format(target=TARGET),
        settings={"target": TARGET},
    )
    agree = True
    for model in options.models.split(","):
        if model not in TOLERANCE:
            raise SystemExit(f"--models: expected mlp or cnn, got {model!r}")
        row, same = measure(model, rounds=options.rounds, quick=options.quick)
        report.rows.append(row)
        agree &= same
    fastest = max(row.get("matrix_gflops", 0.0) for row in report.rows)
    report.notes = [
        f"The fastest matrix product ran at {fastest:.0f} GFLOP/s.",
        "The operations are those of the products of the real examples alone, two per "
        "multiply-add: nothing for padding, activations or updates.",
    ]
    asked = (options.models, options.rounds)
    complete = asked == ("mlp,cnn", None) and not options.quick
    print(report.markdown())
    print(*report.write(complete=complete), sep="\n")
    return agree


def measure(
    model: str, *, rounds: int | None, quick: bool
) -> tuple[dict[str, Any], bool]:
    """Return a model's row, and whether the params agree."""
    turns = 1 + (rounds or (3 if quick else {"mlp": 30, "cnn": 8}[model]))
    size = {"clients": 40, "cohort": 10} if quick else {}
    workload = make(model, **size, rounds=turns)
    plain = Contender(OWN["plain"], "by hand")
    fad = Contender(OWN["fad"], "fad")
    product = Product(OWN["plain"], "matrix product")
    fields = [plain, fad, product]
    contest(fields, workload, task="fedavg", turns=turns, read_after=ROUNDS[model])
    agree = judge([plain, fad], TOLERANCE[model])
    row: dict[str, Any] = {"model": model, "parity": str(fad.parity)}
    row |= {"fad": fad.row()["seconds"], "plain": plain.row()["seconds"]}
    row |= {"fad_walls": fad.walls, "plain_walls": plain.walls}
    if fad.failure or plain.failure or product.failure:
        return row, False
    return row | rates(workload, plain.walls, fad.walls, product), agree


def rates(
    workload: Workload, plain: list[float], fad: list[float], product: "Product"
) -> dict[str, float]:
    """Return the ratio of the times, and the shares of the machine's rate."""
    peak = product.facts["flops"] / min(product.walls)
    work = [
        flops_of_step(workload.model) * float(workload.sizes[clients].sum()) / BATCH
        for clients in workload.schedule[1:]
    ]
    fad_rate = statistics.median(w / t for w, t in zip(work, fad, strict=True))
    plain_rate = statistics.median(w / t for w, t in zip(work, plain, strict=True))
    return {
        "ratio": statistics.median(f / p for f, p in zip(fad, plain, strict=True)),
        "fad_gflops": fad_rate / 1e9,
        "matrix_gflops": peak / 1e9,
        "fraction": fad_rate / peak,
        "plain_fraction": plain_rate / peak,
    }


class Product(Contender):
    """The matrix product, a task of its own in the same turns."""

    def open(self, task, workload, logs):
        """Start it; its task is not the others'."""
        super().open("matrix_product", workload, logs)
