"""The page of a study of compression: accuracy by what a client sends, and by method.

A series is called "method: setting"; the setting is "p = 1,000" where p numbers go up.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks._figures import COLOURS
from benchmarks._machine import describe, machine
from benchmarks._report import ROOT, table
from benchmarks._study import Study
from benchmarks._study_page import Curves, curves

WHOLE, OURS = "FedAvg", "FedSep"
_HOW, _NEITHER = ("ahead", "even", "behind"), "neither above 20 %"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Point(NamedTuple):
    """One series on one split.

    Attributes:
        method: What compresses.
        setting: Its setting, such as "p = 1,000".
        values: ``[seeds]``, accuracy at the last evaluation; NaN if it diverged.
        rate: Bytes up, over those of FedAvg.
        down: Kilobytes down, in a round.
        up: Kilobytes up, in a round.
    """

    method: str
    setting: str
    values: np.ndarray
    rate: float
    down: float
    up: float


def points(study: Study, found: Mapping[str, Any], split: str) -> list[Point]:
    """Return what is kept of a split."""
    kept: dict[str, Curves] = {}
    for label in study.series:
        own = curves(study, found, label, split, study.metric)
        if own is not None:
            kept[label] = own
    if WHOLE not in kept:
        return []
    whole = kept[WHOLE].run["bytes"][1]
    out = []
    for label, own in kept.items():
        method, _, setting = label.partition(": ")
        values, (down, up) = 100 * own.values[:, -1], own.run["bytes"]
        out.append(Point(method, setting, values, up / whole, down / 1e3, up / 1e3))
    return out


def write_page(command: str, name: str, study: Study, found: Mapping[str, Any]) -> None:
    """Write ``docs/experiments/<command>_<name>.md`` and its figure."""
    folder = ROOT / "docs" / "experiments"
    page = f"{command}_{name}"
    splits = {split: points(study, found, split) for split in study.splits}
    _figure(splits, folder / f"{page}.png")
    parts = [f"# {study.title}", study.about, f"![{study.title}]({page}.png)"]
    for split, own in splits.items():
        parts += [f"## {split}", _by_p(own), _by_setting(own), _verdict(own)]
    parts += ["## What a client sends and gets", _traffic(splits), _notes(study, found)]
    parts.append(f"This page was written on: {describe(machine())}.")
    again = f"python -m benchmarks {command} {name} {_seeds(found)}"
    parts.append(f"Run it again: `{again}`.")
    (folder / f"{page}.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def _numbers(own: list[Point]) -> dict[int, list[Point]]:
    """Return the points of each p, in order."""
    found: dict[int, list[Point]] = {}
    for point in own:
        if point.setting.startswith("p = "):
            found.setdefault(int(point.setting[4:].replace(",", "")), []).append(point)
    return dict(sorted(found.items()))


def _by_p(own: list[Point]) -> str:
    """Return the table of accuracies: a line per method, a column per p."""
    by_p = _numbers(own)
    rows: dict[str, dict[str, Any]] = {}
    for p, here in by_p.items():
        for point in here:
            row = rows.setdefault(point.method, {"method": point.method})
            row[str(p)] = mean(point.values)
    heads = {str(p): f"p = {p:,}" for p in by_p}
    return table(list(rows.values()), {"method": "accuracy, %"} | heads)


def _by_setting(own: list[Point]) -> str:
    """Return the table of the methods that have other settings than p."""
    rows = [
        {
            "method": f"{point.method} {point.setting}".strip(),
            "rate": f"{point.rate:.3g}",
            "accuracy": mean(point.values),
        }
        for point in own
        if not point.setting.startswith("p = ")
    ]
    heads = {"method": "method", "rate": "communication rate", "accuracy": "accuracy"}
    return table(rows, heads | {"accuracy": "accuracy, %"})


def _verdict(own: list[Point]) -> str:
    """Say where FedSep is ahead of what sends as much, and how far from FedAvg."""
    parts = (_best(own), _against(own), _behind_whole(own), _both_ways(own))
    return "\n".join(f"- {line}" for part in parts for line in part)


def _best(own: list[Point]) -> Iterator[str]:
    """Yield who has the highest mean at which p, and whether the claim holds."""
    first, small = {}, {}
    for p, here in _numbers(own).items():
        means = {x.method: float(np.nan_to_num(x.values.mean())) for x in here}
        if len({method.startswith(OURS) for method in means}) < 2:
            continue
        best = max(means, key=lambda k, means=means: means[k])
        first.setdefault(best, []).append(f"{p:,}")
        small |= {p: best.startswith(OURS)} if p <= 1000 else {}
    said = [f"{method} at p = {', '.join(ps)}" for method, ps in first.items()]
    if said:
        yield f"Best of what sends p numbers up: {'; '.join(said)}."
    if small and len(own[0].values) > 1:
        yield (
            "The paper has FedSep ahead of all at high compression. By bytes up, that "
            f"is so here at {sum(small.values())} of the {len(small)} p up to 1,000."
        )


def _against(own: list[Point]) -> Iterator[str]:
    """Yield FedSep against each baseline at the same p, over all p."""
    by_p = _numbers(own)
    ours = dict.fromkeys(x.method for x in own if x.method.startswith(OURS))
    rest = dict.fromkeys(x.method for here in by_p.values() for x in here)
    for mine in ours:
        for other in (method for method in rest if method not in ours):
            said: dict[str, list[str]] = {k: [] for k in (*_HOW, _NEITHER)}
            for p, here in by_p.items():
                pair = {x.method: x.values for x in here}
                if mine in pair and other in pair:
                    how, by = compare(pair[mine], pair[other])
                    said[how].append(f"p = {p:,}{by}")
            text = "; ".join(f"{k} at {', '.join(v)}" for k, v in said.items() if v)
            if text:
                yield f"{mine} against {other}: {text}."


def compare(mine: np.ndarray, other: np.ndarray) -> tuple[str, str]:
    """Return who is ahead, and by how many points: ``[seeds], [seeds]``.

    Seed by seed; even where the mean difference is within its standard deviation. A run
    that diverged has no accuracy: it is that of a guess between ten classes.
    """
    seeds = min(len(mine), len(other))
    a, b = (np.nan_to_num(x[:seeds], nan=10) for x in (mine, other))
    if max(a.mean(), b.mean()) < 20:
        return _NEITHER, ""
    gap = a - b
    spread = gap.std(ddof=1) if seeds > 1 else 0.0
    how = "ahead" if gap.mean() > 0 else "behind"
    return "even" if abs(gap.mean()) <= spread else how, f" ({gap.mean():+.1f})"


def _behind_whole(own: list[Point]) -> Iterator[str]:
    """Yield the smallest p at which a method is within some points of FedAvg."""
    whole, by_p = _whole(own), _numbers(own)
    methods = dict.fromkeys(x.method for here in by_p.values() for x in here)
    for allowed in (1, 5):
        reached = []
        for method in methods:
            enough = [
                p
                for p, here in by_p.items()
                for x in here
                if x.method == method and x.values.mean() >= whole - allowed
            ]
            least = f"p = {min(enough):,}" if enough else "no p"
            reached.append(f"{method} {least}")
        points = "1 point" if allowed == 1 else f"{allowed} points"
        yield f"Within {points} of FedAvg from: {'; '.join(reached)}."


def _both_ways(own: list[Point]) -> Iterator[str]:
    """Yield what FedSep reaches with fewer bytes than any other method."""
    ours = [x for x in own if x.method.startswith(OURS)]
    rest = [x.down + x.up for x in own if not x.method.startswith(OURS)]
    enough = [x for x in ours if x.values.mean() >= _whole(own) - 5]
    if not enough or not rest:
        return
    point = min(enough, key=lambda x: x.down + x.up)
    sent, least = point.down + point.up, min(rest)
    if sent < least:
        yield (
            f"Down and up together the others send {least:.0f} KB in a round or more, "
            f"for each broadcasts the model; within 5 points of FedAvg is "
            f"{point.method} at {point.setting}, with {sent:.1f} KB, 1 / "
            f"{least / sent:.0f} of that: {mean(point.values)} %."
        )


def _whole(own: list[Point]) -> float:
    """Return FedAvg's mean accuracy, NaN where there is none."""
    return next((float(x.values.mean()) for x in own if x.method == WHOLE), np.nan)


def _traffic(splits: Mapping[str, list[Point]]) -> str:
    """Return the table of the bytes of all settings."""
    rows = {}
    for own in splits.values():
        for point in own:
            label = f"{point.method}, {point.setting}".rstrip(", ")
            rows[label] = {
                "method": label,
                "rate": f"{point.rate:.3g}",
                "up": f"{point.up:.3g}",
                "down": f"{point.down:.3g}",
            }
    heads = {"method": "method", "rate": "communication rate"}
    return table(list(rows.values()), heads | {"up": "KB up", "down": "KB down"})


def mean(values: np.ndarray) -> str:
    """Return mean and deviation over the seeds that did not diverge."""
    there = values[np.isfinite(values)]
    if not len(there):
        return "diverged"
    gone = len(values) - len(there)
    text = f"{there.mean():.1f}"
    text += f" ± {there.std(ddof=1):.1f}" if len(there) > 1 else ""
    return text + (f" ({gone} diverged)" if gone else "")


def _runs(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    splits = [split for kept in found.values() for split in kept["splits"].values()]
    return [run for split in splits for run in split["runs"].values()]


def _seeds(found: Mapping[str, Any]) -> str:
    splits = (split for kept in found.values() for split in kept["splits"].values())
    return f"--seeds {max((len(split['runs']) for split in splits), default=1)}"


def _notes(study: Study, found: Mapping[str, Any]) -> str:
    runs, rounds = _runs(found), {series.steps for series in study.series.values()}
    seconds = [run["seconds"] for run in runs]
    return (
        f"Seeds: {_seeds(found)[8:]}, of the partition too; mean ± standard deviation "
        f"over them, accuracies after {max(rounds)} rounds. Methods are compared seed "
        "by seed, and are even where the mean difference is within its standard "
        "deviation. The communication rate is bytes up over those of FedAvg; bytes "
        "are those of `fad.plan` of one client in a round, indices included. "
        f"All {len(runs)} runs took {sum(seconds) / 60:.0f} minutes of one core, the "
        f"longest {max(seconds, default=0):.0f} seconds."
    )


def _figure(splits: Mapping[str, list[Point]], path: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (12, 4.2 * len(splits))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), 2, squeeze=False, sharey="row")
    for (split, own), (left, right) in zip(splits.items(), panels, strict=True):
        _panel(left, own, lambda point: point.rate)
        _panel(right, own, lambda point: point.down + point.up)
        left.set(xlabel="communication rate: bytes up / FedAvg's")
        left.set(ylabel="test accuracy, %")
        right.set(xlabel="KB of a client in a round, down and up")
        left.set_title(split, loc="left", fontsize=10, fontweight="bold")
        if own:
            look = {"frameon": False, "fontsize": 8, "loc": "center left"}
            right.legend(bbox_to_anchor=(1, 0.5), **look)
    figure.savefig(path)


def _panel(axes: Any, own: list[Point], at: Callable[[Point], float]) -> None:
    methods = [m for m in dict.fromkeys(x.method for x in own) if m != WHOLE]
    for point in (x for x in own if x.method == WHOLE):
        axes.axhline(point.values.mean(), color="0.4", lw=1.2, ls="--", label=WHOLE)
    for k, method in enumerate(methods):
        line = sorted((x for x in own if x.method == method), key=at)
        middle = [np.nan_to_num(x.values, nan=10).mean() for x in line]
        spread = [np.nan_to_num(x.values, nan=10).std() for x in line]
        look: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "lw": 1.4}
        look |= {"marker": MARKS[k % len(MARKS)], "ms": 4, "capsize": 2}
        axes.errorbar([at(x) for x in line], middle, spread, label=method, **look)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.set_xscale("log")
