"""The page of a study of sub-models: how well, at which FLOPs and bytes of a client."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks._figures import COLOURS
from benchmarks._machine import describe, machine
from benchmarks._report import ROOT, table
from benchmarks._study import Study
from benchmarks._study_page import LAST, Curves, curves
from benchmarks._submodel_choice import choice_text
from benchmarks._submodel_studies import HIGH, KINDS, PAPER, density

OWN = "FedSep"
PARTIAL = (*KINDS["slices"], *KINDS["masks"])
MARKS = {"public data": "s", "slices": "o", "masks": "^", "one size": "D"}
STYLES = {"public data": "--", "slices": "-", "masks": ":", "one size": "-."}


class Costs(NamedTuple):
    """MFLOP, and KB down and up, of a client in a round."""

    mflop: float
    down: float
    up: float


def write_page(command: str, name: str, study: Study, found: Mapping[str, Any]) -> None:
    """Write ``docs/experiments/fedsep_<name>.md`` and its figures."""
    folder = ROOT / "docs" / "experiments"
    page = f"fedsep_{name}"
    _figure(study, found, folder / f"{page}.png", _points)
    _figure(study, found, folder / f"{page}_rounds.png", _curves)
    parts = [f"# {study.title}", study.about]
    for k, split in enumerate(study.splits):
        parts += [f"## {split}", _table(study, found, split, k)]
        parts.append(verdict(study, found, split))
    if "choice" in found.get(OWN, {}):
        parts.append(choice_text(found[OWN]["choice"]))
    parts += [_notes(study, found), f"![Accuracy against FLOPs]({page}.png)"]
    parts.append(f"![Accuracy against rounds]({page}_rounds.png)")
    parts.append(f"This page was written on: {describe(machine())}.")
    parts.append(f"Run it again: {_again(f'{command} {name}', study, found)}.")
    (folder / f"{page}.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def kind_of(label: str) -> str:
    """Return the kind of a series."""
    return next(kind for kind, labels in KINDS.items() if label in labels)


def costs(study: Study, found: Mapping[str, Any], label: str, own: Curves) -> Costs:
    """Return what a client does and sends in a round, the mean over the run's rounds.

    The FLOPs of masks are counted by their density. ``fad.plan`` counts the costlier
    side of a condition: FedSep's rounds with a search, which are one of ``refresh``.
    """
    there = np.array([own.run["flops"], *own.run["bytes"]], float)
    without = found[label].get("between")
    if without is not None:
        rare = np.array([without["flops"], *without["bytes"]], float)
        there = rare + (there - rare) / study.series[label].algorithm["refresh"]
    return Costs(density(label) * there[0] / 1e6, there[1] / 1e3, there[2] / 1e3)


def ahead(
    study: Study, found: Mapping[str, Any], split: str, label: str
) -> np.ndarray | None:
    """Return how many points FedSep is ahead of a series, ``[seeds]``."""
    own, other = (curves(study, found, k, split, study.metric) for k in (OWN, label))
    if own is None or other is None:
        return None
    seeds = min(len(own.values), len(other.values))
    return 100 * (own.final()[:seeds] - other.final()[:seeds])


def verdict(study: Study, found: Mapping[str, Any], split: str) -> str:
    """Say whether FedSep is above the other methods that train a part of the model."""
    lines, below = [], []
    for label in PARTIAL:
        points = None if label == OWN else ahead(study, found, split, label)
        if points is None:
            continue
        lines.append(f"{_mean(points)} ahead of {label}")
        if not points.mean() > 0:
            below.append(label)
    if not lines:
        return ""
    where = "in high heterogeneity" if split == HIGH else "in low heterogeneity"
    if below:
        said = f"FedSep is **not** above {_listed(below)} {where}"
    else:
        said = f"FedSep is above the other methods that train a part, {where}"
    return f"{said}. In points, seed by seed: it is {_listed(lines)}."


def _listed(texts: list[str]) -> str:
    *some, last = texts
    return f"{', '.join(some)} and {last}" if some else last


def _table(study: Study, found: Mapping[str, Any], split: str, column: int) -> str:
    columns = {"series": "method", "kind": "clients differ by"}
    columns |= {
        "seeds": "seeds",
        "final": f"final {study.metric}, %",
        "flops": "MFLOP / round",
    }
    columns |= {"sent": "KB / round", "paper": "the paper, CIFAR-10, %"}
    rows = []
    for label, own in drawn(study, found, split).items():
        cost = costs(study, found, label, own)
        rows.append(
            {
                "series": label,
                "kind": kind_of(label),
                "seeds": len(own.values),
                "final": _mean(100 * own.final()),
                "flops": f"{cost.mflop:.0f}",
                "sent": f"{cost.down:.0f} + {cost.up:.0f}",
                "paper": f"{PAPER[label][column]:.2f}",
            }
        )
    return table(rows, columns)


def drawn(study: Study, found: Mapping[str, Any], split: str) -> dict[str, Curves]:
    """Return the curves that are kept of a split, in the order of the paper's table."""
    every = {
        label: curves(study, found, label, split, study.metric)
        for label in PAPER
        if label in study.series
    }
    return {label: own for label, own in every.items() if own is not None}


def _mean(values: np.ndarray) -> str:
    there = values[np.isfinite(values)]
    if not len(there):
        return "diverged"
    spread = f" ± {there.std(ddof=1):.2f}" if len(there) > 1 else ""
    gone = len(values) - len(there)
    text = f"{there.mean():.2f}{spread}"
    return text + (f" ({gone} diverged)" if gone else "")


def _again(name: str, study: Study, found: Mapping[str, Any]) -> str:
    """Return the command, or one for each part where their numbers of seeds differ."""
    seeds: dict[str, int] = {}
    for label, kept in found.items():
        most = max(len(split["runs"]) for split in kept["splits"].values())
        part = study.series[label].part
        seeds[part] = max(seeds.get(part, 0), most)
    alike = len(set(seeds.values())) == 1
    lines = [
        f"`python -m benchmarks {name} --seeds {count}"
        + ("`" if alike else f" --part {part}`")
        for part, count in seeds.items()
    ]
    return " and ".join(dict.fromkeys(lines))


def _notes(study: Study, found: Mapping[str, Any]) -> str:
    splits = [split for kept in found.values() for split in kept["splits"].values()]
    runs = [run for split in splits for run in split["runs"].values()]
    counts = {len(split["runs"]) for split in splits} - {0}
    seeds = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    seconds = [run["seconds"] for run in runs]
    missing = [label for label in PAPER if label not in found]
    few = " With one seed differences of two points or so mean nothing."
    few = few if min(counts) == 1 else ""
    lacks = f" Not run: {_listed(missing)}." if missing else ""
    return (
        f"Seeds: {seeds}, of the partition too; mean ± standard deviation over them, "
        f"of differences seed by seed. Final values are means of the last {LAST} of "
        f"{len(runs[0]['steps'])} evaluations. FLOPs and bytes (down + up) are those "
        "of one client in one round, by `fad.plan`, the mean over a cohort. "
        f"All {len(runs)} runs took {sum(seconds) / 60:.0f} minutes, one at a time "
        f"beside other work, the longest {max(seconds):.0f} seconds.{few}{lacks}"
    )


def _figure(study: Study, found: Mapping[str, Any], path: Any, draw: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (6.5 * len(study.splits), 5)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(study.splits), squeeze=False)[0]
    for split, axes in zip(study.splits, panels, strict=True):
        lines = drawn(study, found, split)
        mflop = {k: costs(study, found, k, own).mflop for k, own in lines.items()}
        draw(axes, lines, mflop)
        axes.set_title(split, loc="left", fontsize=10, fontweight="bold")
        axes.set_ylabel(f"test {study.metric}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    panels[-1].legend(
        frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    figure.savefig(path)


def _look(label: str) -> dict[str, Any]:
    """Return the colour of a series, no other's of its kind or of black."""
    kind = kind_of(label)
    place = KINDS[kind].index(label) + 3 * (kind == "masks")
    return {"color": "black" if label == OWN else COLOURS[place % 6], "label": label}


def _points(axes: Any, lines: Mapping[str, Curves], mflop: Mapping[str, float]) -> None:
    for label, own in lines.items():
        final = own.final()
        low, high = np.nanmin(final), np.nanmax(final)
        mean = np.nanmean(final)
        look = {"marker": MARKS[kind_of(label)], "ls": "", "capsize": 2, "ms": 7}
        spread = [[mean - low], [high - mean]]
        axes.errorbar([mflop[label]], [mean], yerr=spread, **look, **_look(label))
    axes.set_xscale("log")
    axes.set_xlabel("MFLOP of a client in a round (bars: all seeds)")


def _curves(axes: Any, lines: Mapping[str, Curves], mflop: Mapping[str, float]) -> None:
    del mflop
    for label, own in lines.items():
        mean, ls = np.nanmean(own.values, 0), STYLES[kind_of(label)]
        look = {"lw": 2 if label == OWN else 1.2, "ls": ls, **_look(label)}
        axes.plot(own.run["steps"], mean, **look)
    axes.set_xlabel("rounds")
