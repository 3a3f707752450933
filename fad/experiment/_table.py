"""The table of a comparison: a line a run."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from fad._errors import RunError, nearest
from fad.experiment._comparison import Comparison, Entry
from fad.experiment._metrics import Row, trailing_means
from fad.experiment._report import summary

Line = dict[str, str | int | float | None]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a comparison.

    Attributes:
        label: Its name in figure and table.
        rows: Its rows; of one that diverged, those before.
        diverged: Whether it did.
    """

    label: str
    rows: list[Row]
    diverged: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """An entry's best run, and the other points of its grid."""

    entry: Entry
    best: Run
    others: list[Run]


def choose(comparison: Comparison, entry: Entry, runs: Sequence[Run]) -> Result:
    """Keep the best run: by final metric, then by the area under the curve."""
    sign, window = _sign(comparison.metric), comparison.window

    def score(run: Run) -> tuple[float, float]:
        means = trailing_means(run.rows, comparison.metric, window=window)
        values = [sign * value for _, value in means] or [-math.inf]
        return values[-1], sum(values) / len(values)

    best = max(runs, key=score)
    return Result(entry, best, [run for run in runs if run is not best])


def check_metrics(comparison: Comparison, results: Sequence[Result]) -> None:
    """Refuse a metric that no run has, unless none came as far as its evaluation.

    Raises:
        RunError: There is none.
    """
    known = {k for r in results for row in r.best.rows for k in row} - {"round"}
    if all(r.best.diverged for r in results):
        return
    for name in filter(None, (comparison.metric, comparison.trace)):
        if name not in known:
            raise RunError(
                f"unknown metric {name!r}. {nearest(name, known, 'metrics')}"
            )


def target_level(comparison: Comparison, results: Sequence[Result]) -> float | None:
    """Return the level of the metric that counts as reached.

    There is none where the run that defines it diverged.
    """
    if comparison.target is not None:
        return comparison.target
    for result in results:
        if result.entry.label == comparison.target_of:
            final = _line(comparison, result.best, None)[f"final {comparison.metric}"]
            if isinstance(final, float):
                # A loss is reached from above.
                return final * comparison.target_fraction ** _sign(comparison.metric)
    return None


def tabulate(
    comparison: Comparison, results: Sequence[Result], target: float | None
) -> list[Line]:
    """Return a line a run: those of the file's order, then those that diverged."""
    ordered = sorted(results, key=lambda result: result.best.diverged)
    return [_line(comparison, result.best, target) for result in ordered]


def _line(comparison: Comparison, run: Run, target: float | None) -> Line:
    metric, sign = comparison.metric, _sign(comparison.metric)
    means = trailing_means(run.rows, metric, window=comparison.window)
    values = [value for _, value in means]
    reached: Row | None = None
    if target is not None:
        hits = (row for row, value in means if sign * value >= sign * target)
        reached = next(hits, None)
    total = summary(run.rows) if run.rows else {}
    to_target = summary([reached]) if reached else None
    return {
        "run": run.label,
        f"final {metric}": values[-1] if values and not run.diverged else None,
        f"best {metric}": sign * max(sign * v for v in values) if values else None,
        "rounds to target": reached["round"] if reached else None,
        "MB to target / client": (
            to_target["mb_down"] + to_target["mb_up"] if to_target else None
        ),
        "MB down / client": total.get("mb_down"),
        "MB up / client": total.get("mb_up"),
    }


def cells(table: Sequence[Line]) -> list[list[str]]:
    """Return the texts of the lines."""
    return [[_cell(name, value) for name, value in line.items()] for line in table]


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *escaped])


def _cell(name: str, value: str | int | float | None) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if name.startswith("MB"):
        return np.format_float_positional(value, 4, fractional=False, trim="-")
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


def _sign(metric: str) -> int:
    return -1 if metric == "loss" or metric.endswith("_loss") else 1
