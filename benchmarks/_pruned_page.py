"""The page of a study of pruned clients: what they do, hold and send, and how well."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks._figures import COLOURS
from benchmarks._machine import describe, machine
from benchmarks._pruned_studies import FULL, NAIVE
from benchmarks._report import ROOT, table
from benchmarks._study import Study
from benchmarks._study_page import LAST, Curves, curves

ALLOWED = 1.5  # points that half the resources may cost
STYLES = {"full": "-", ".62": "--", ".47": ":", ".25": "-."}  # by width
MARKS: dict[str, dict[str, Any]] = {
    "": {},
    "naive": {"marker": "x", "ms": 4, "markevery": 2},
    "exact": {"marker": "o", "ms": 3, "markevery": 2},
    "by round": {"marker": "^", "ms": 4, "markevery": 2},
    "naive by round": {"marker": "v", "ms": 4, "markevery": 2},
}


def write_page(command: str, name: str, study: Study, found: Mapping[str, Any]) -> None:
    """Write ``docs/experiments/<command>_<name>.md`` and its figure."""
    folder = ROOT / "docs" / "experiments"
    page = f"{command}_{name}"
    _figure(study, found, folder / f"{page}.png")
    parts = [f"# {study.title}", study.about]
    for split in study.splits:
        title = [f"## {split}"] if len(study.splits) > 1 else []
        parts += [*title, _table(study, found, split), _verdict(study, found, split)]
    parts += [_notes(found), f"![{study.title}]({page}.png)"]
    parts.append(f"This page was written on: {describe(machine())}.")
    parts.append(f"Run it again: `python -m benchmarks {command} {name}`.")
    (folder / f"{page}.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def behind(
    study: Study, found: Mapping[str, Any], split: str, label: str, other: str
) -> np.ndarray | None:
    """Return how many points a series is behind another one, ``[seeds]``."""
    own, best = (curves(study, found, k, split, study.metric) for k in (label, other))
    if own is None or best is None:
        return None
    seeds = min(len(own.values), len(best.values))
    return 100 * (best.final()[:seeds] - own.final()[:seeds])


def _table(study: Study, found: Mapping[str, Any], split: str) -> str:
    columns = {"series": "algorithm, widths", "final": f"final {study.metric}, %"}
    columns |= {name: name.replace("_", " ") for name in study.others}
    columns |= {"behind": "points behind full", "flops": "GFLOP", "sent": "MB"}
    columns["memory"] = "memory, MB"
    rows = []
    for label in study.series:
        own = curves(study, found, label, split, study.metric)
        if own is None:
            continue
        less = behind(study, found, split, label, FULL.get(label, label))
        steps = own.run["steps"][-1]
        down, up = (steps * sent / 1e6 for sent in own.run["bytes"])
        row: dict[str, Any] = {
            "series": label,
            "final": _mean(100 * own.final(), ".2f"),
        }
        for metric in study.others:
            other = curves(study, found, label, split, metric)
            row[metric] = None if other is None else _mean(other.final(), ".3f")
        row["behind"] = _mean(less, ".2f") if label in FULL and less is not None else ""
        row["flops"] = f"{steps * own.run['flops'] / 1e9:.0f}"
        row["sent"] = f"{down:.0f} + {up:.0f}"
        sizes = np.array(list(found[label].get("memory", {}).values())) / 1e6
        if len(sizes):
            row["memory"] = f"{sizes.mean():.1f} ({sizes.max():.1f})"
        rows.append(row)
    return table(rows, columns)


def _verdict(study: Study, found: Mapping[str, Any], split: str) -> str:
    """Say of each pruned series what it saves, and whether what is claimed holds."""
    lines, best = [], _best_full(study, found, split)
    for label, naive in NAIVE.items():
        full = behind(study, found, split, label, FULL[label])
        other = behind(study, found, split, label, best)
        before = behind(study, found, split, naive, label)
        if full is None or other is None or before is None:
            continue
        flops, sent, memory = _shares(study, found, split, label, FULL[label])
        lines.append(
            f"- {label}: with {flops:.2f} of the FLOPs, {sent:.2f} of the bytes and "
            f"{memory:.2f} of the memory of {FULL[label]} it is {_mean(full, '.2f')} "
            f"points behind it, at most {ALLOWED}: {_yes(full.mean() <= ALLOWED)}; "
            f"{_mean(other, '.2f')} behind {best}, the best of the full models, at "
            f"most {ALLOWED}: {_yes(other.mean() <= ALLOWED)}; and "
            f"{_mean(before, '.2f')} ahead of the naive average, better: "
            f"{_yes(before.mean() > 0)}."
        )
    return "\n".join(lines)


def _best_full(study: Study, found: Mapping[str, Any], split: str) -> str:
    """Return the series with full models that ends best."""
    finals = {
        label: np.nanmean(own.final())
        for label in study.series
        if label not in FULL
        and (own := curves(study, found, label, split, study.metric)) is not None
    }
    return max(finals, key=lambda label: finals[label])


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _shares(
    study: Study, found: Mapping[str, Any], split: str, label: str, full: str
) -> list[float]:
    """Return a series' FLOPs, bytes and memory over those of another one."""
    sums = []
    for name in (label, full):
        own = curves(study, found, name, split, study.metric)
        assert own is not None
        steps = own.run["steps"][-1]
        memory = np.mean(list(found[name].get("memory", {"1": np.nan}).values()))
        sums.append((steps * own.run["flops"], steps * sum(own.run["bytes"]), memory))
    return list(np.asarray(sums[0], float) / np.asarray(sums[1], float))


def _mean(values: np.ndarray, form: str) -> str:
    there = values[np.isfinite(values)]
    if not len(there):
        return "diverged"
    spread = there.std(ddof=1) if len(there) > 1 else 0.0
    gone = len(values) - len(there)
    text = f"{there.mean():{form}} ± {spread:{form}}"
    return text + (f" ({gone} diverged)" if gone else "")


def _notes(found: Mapping[str, Any]) -> str:
    splits = [split for kept in found.values() for split in kept["splits"].values()]
    runs = [run for split in splits for run in split["runs"].values()]
    seeds = max((len(split["runs"]) for split in splits), default=0)
    seconds = [run["seconds"] for run in runs]
    return (
        f"{seeds} seeds, of the partition too; mean ± standard deviation over them, of "
        "differences seed by seed. "
        f"Final values are means of the last {LAST} evaluations. GFLOP and MB (down + "
        "up) are those of one client that takes part in every round of the run, by "
        "`fad.plan`, the mean over the clients of a cohort. Memory is that of the "
        "compiled step of one client, arguments and temporaries with its examples, on "
        "the model of its width: mean over the tiers (largest). Its examples, bytes "
        "that are used as floats, take the same at all widths. "
        f"All {len(runs)} runs took {sum(seconds) / 60:.0f} minutes of one core, the "
        f"longest {max(seconds, default=0):.0f} seconds."
    )


def _figure(study: Study, found: Mapping[str, Any], path: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = list(study.splits)
    figure = Figure(figsize=(13, 4.6 * len(splits)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), 2, squeeze=False, sharey="row")
    for split, (left, right) in zip(splits, panels, strict=True):
        drawn = {
            label: own
            for label in study.series
            if (own := curves(study, found, label, split, study.metric)) is not None
        }
        for axes in (left, right):
            _panel(axes, drawn, by_flops=axes is left)
        left.set(xlabel="GFLOP of a client", ylabel=f"test {study.metric}")
        right.set(xlabel="MB of a client, down and up")
        left.set_title(split, loc="left", fontsize=10, fontweight="bold")
        if drawn:
            look = {"frameon": False, "fontsize": 8, "loc": "center left"}
            right.legend(bbox_to_anchor=(1, 0.5), **look)
    figure.savefig(path)


def _panel(axes: Any, lines: Mapping[str, Curves], *, by_flops: bool) -> None:
    lows: Sequence[float] = [0.95]
    methods = list(dict.fromkeys(label.partition(",")[0] for label in lines))
    for label, own in lines.items():
        method = label.partition(",")[0]
        _, *rest = label.split(", ")
        width, _, kind = (rest or ["full"])[0].partition(" ")
        each = own.run["flops"] / 1e9 if by_flops else sum(own.run["bytes"]) / 1e6
        at = np.asarray(own.run["steps"]) * each
        look = {"color": COLOURS[methods.index(method) % len(COLOURS)]}
        mean, spread = np.nanmean(own.values, 0), np.nanstd(own.values, 0)
        axes.plot(
            at, mean, label=label, lw=1.2, ls=STYLES[width], **look, **MARKS[kind]
        )
        axes.fill_between(at, mean - spread, mean + spread, alpha=0.1, lw=0, **look)
        lows = [*lows, mean[-1]]
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.set_xscale("log")
    axes.set_ylim(min(lows) - 0.06, None)
