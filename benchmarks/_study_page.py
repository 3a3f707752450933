"""The page of a study: a table per split, and a figure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks._figures import COLOURS
from benchmarks._machine import describe, machine
from benchmarks._report import ROOT, table
from benchmarks._study import Study

WINDOW, LAST = 3, 5  # evaluations in a curve's trailing mean, and in a final value


class Curves(NamedTuple):
    """One series on one split.

    Attributes:
        values: ``[seeds, evaluations]``; NaN once a run has diverged.
        rounds: ``[evaluations]``, rounds of communication.
        megabytes: ``[evaluations]``, of one client in every round, both ways.
        run: One of its runs.
    """

    values: np.ndarray
    rounds: np.ndarray
    megabytes: np.ndarray
    run: dict[str, Any]

    def final(self) -> np.ndarray:
        """Return the last value of every seed, ``[seeds]``; NaN if it diverged."""
        return self.values[:, -LAST:].mean(1)

    def rounds_to(self, target: float) -> np.ndarray:
        """Return the rounds of every seed to a target, ``[seeds]``; infinity if none.

        The curve is a trailing mean, so that one lucky evaluation counts for little.
        """
        found = []
        for own in self.values:
            smooth = [
                own[max(0, i - WINDOW + 1) : i + 1].mean() for i in range(len(own))
            ]
            there = np.asarray(smooth) >= target
            found.append(self.rounds[there.argmax()] if there.any() else np.inf)
        return np.asarray(found)


def curves(
    study: Study, found: Mapping[str, Any], label: str, split: str, metric: str
) -> Curves | None:
    """Return what is kept of a series on a split; None if nothing is."""
    kept = found.get(label, {"splits": {}})["splits"]
    runs = list(kept.get(split, {"runs": {}})["runs"].values())
    if not runs or metric not in runs[0]:
        return None
    steps = np.asarray(runs[0]["steps"])
    values = np.asarray([run[metric] for run in runs], float)
    sent = sum(runs[0]["bytes"]) / 1e6
    rounds = study.series[label].rounds or runs[0]["rounds"]
    return Curves(values, steps * rounds, steps * sent, runs[0] | {"rounds": rounds})


def write_page(command: str, name: str, study: Study, found: Mapping[str, Any]) -> None:
    """Write ``docs/experiments/<name>.md`` and its figure."""
    folder = ROOT / "docs" / "experiments"
    _figure(study, found, folder / f"{name}.png")
    parts = [f"# {study.title}", study.about]
    for split in study.splits:
        parts += [f"## {split}", _table(study, found, split)]
    parts.append(_notes(study, found))
    parts.append(f"![{study.title}]({name}.png)")
    parts.append(f"This page was written on: {describe(machine())}.")
    parts.append(f"Run it again: `python -m benchmarks {command} {name}`.")
    (folder / f"{name}.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def _table(study: Study, found: Mapping[str, Any], split: str) -> str:
    columns = {"series": "algorithm", "rounds": "rounds / step", "sent": "KB / step"}
    columns |= {"final": f"final {study.metric}"}
    columns |= {name: name.replace("_", " ") for name in study.others}
    for target in study.targets:
        columns[f"to {target}"] = f"rounds to {target:.1%}"
    columns["megabytes"] = f"MB to {study.targets[-1]:.1%}"
    rows = []
    for label in study.series:
        own = curves(study, found, label, split, study.metric)
        if own is None:
            continue
        down, up = (sent / 1e3 for sent in own.run["bytes"])
        row: dict[str, Any] = {
            "series": label,
            "rounds": own.run["rounds"],
            "sent": f"{down:.0f} + {up:.0f}",
            "final": _final(own),
        }
        for metric in study.others:
            other = curves(study, found, label, split, metric)
            row[metric] = "" if other is None else _mean(other.final(), ".3f")
        for target in study.targets:
            row[f"to {target}"] = _rounds(own.rounds_to(target))
        each = own.megabytes[0] / own.rounds[0]
        row["megabytes"] = _rounds(own.rounds_to(study.targets[-1]) * each)
        rows.append(row)
    return table(rows, columns)


def _final(own: Curves) -> str:
    """Return mean and deviation over the seeds that did not diverge."""
    values = own.final()
    there = values[np.isfinite(values)]
    gone = len(values) - len(there)
    text = _mean(there, ".4f") if len(there) else "-"
    return f"{text} at {own.rounds[-1]}" + (f" ({gone} diverged)" if gone else "")


def _mean(values: np.ndarray, form: str) -> str:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():{form}} ± {spread:{form}}"


def _rounds(values: np.ndarray) -> str:
    """Return mean and deviation, or how many seeds got there where not all did."""
    there = values[np.isfinite(values)]
    if len(there) == len(values):
        return _mean(values, ".0f")
    return f"{len(there)} of {len(values)} seeds"


def _notes(study: Study, found: Mapping[str, Any]) -> str:
    runs = [
        run
        for kept in found.values()
        for split in kept["splits"].values()
        for run in split["runs"].values()
    ]
    minutes = sum(run["seconds"] for run in runs) / 60
    seeds = max(len(s["runs"]) for k in found.values() for s in k["splits"].values())
    return (
        f"{seeds} seeds, of the partition too; mean ± standard deviation over them. "
        f"Final values are means of the last {LAST} evaluations, reached at the rounds "
        f"named; a target counts as reached when the mean of {WINDOW} evaluations is "
        "there. Rounds and bytes are those of `fad.plan`, the bytes those of one "
        "client that takes part in every round (down + up; MB both ways together). "
        f"All {len(runs)} runs took {minutes:.0f} minutes of one core."
    )


def _figure(study: Study, found: Mapping[str, Any], path: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = list(study.splits)
    figure = Figure(figsize=(12, 4 * len(splits)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), 2, squeeze=False)
    for split, (left, right) in zip(splits, panels, strict=True):
        drawn = {
            label: own
            for label in study.series
            if (own := curves(study, found, label, split, study.metric)) is not None
        }
        _panel(left, {k: (c.rounds, c) for k, c in drawn.items()})
        _panel(right, {k: (c.megabytes, c) for k, c in drawn.items()})
        left.set(xlabel="rounds of communication", ylabel=f"test {study.metric}")
        right.set(xlabel="MB per client, down and up")
        left.set_title(split, loc="left", fontsize=10, fontweight="bold")
        if drawn:
            look = {"frameon": False, "fontsize": 8, "loc": "center left"}
            right.legend(bbox_to_anchor=(1, 0.5), **look)
    figure.savefig(path)


def _panel(axes: Any, lines: Mapping[str, tuple[np.ndarray, Curves]]) -> None:
    lows: Sequence[float] = [0.5]
    for k, (label, (at, own)) in enumerate(lines.items()):
        whole = np.isfinite(own.values).any(0)
        at, values = at[whole], own.values[:, whole]
        mean, spread = np.nanmean(values, 0), np.nanstd(values, 0)
        look = {"color": COLOURS[k % len(COLOURS)]}
        style = ("-", "--", ":")[k // len(COLOURS) % 3]
        axes.plot(at, mean, label=label, lw=1.4, ls=style, **look)
        axes.fill_between(at, mean - spread, mean + spread, alpha=0.12, lw=0, **look)
        lows = [*lows, *mean[len(mean) // 8 :][:1]]
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.set_xscale("log")
    axes.set_ylim(bottom=min(max(lows), 0.6))
