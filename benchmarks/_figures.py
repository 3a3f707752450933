"""Figures of the scaling studies, in the style of the experiments' figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fad.experiment._labels import label_ends
from fad.experiment._lazy import require

# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def draw(rows: Sequence[dict[str, Any]], study: str, path: Path) -> Path:
    """Draw memory and time of every series against what the study varies.

    Args:
        rows: With ``series``, ``at``, ``temp_mb`` and ``median``; those that failed
            lack the last two and are left out.
        study: The name of what is varied.
        path: The file to write.

    Returns:
        ``path``.
    """
    figure = require("matplotlib.figure").Figure(
        figsize=(12, 4.2), dpi=150, layout="constrained"
    )
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    figure.suptitle(
        f"Scaling with {study}", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    for axes, key in zip(figure.subplots(1, 2), ("temp_mb", "median"), strict=True):
        _panel(axes, rows, key)
        ylabel = "XLA's temporary memory, MB" if key == "temp_mb" else "seconds"
        axes.set(xlabel=study, ylabel=ylabel)
    label_ends(figure)
    figure.savefig(path)
    return path


def _panel(axes: Any, rows: Sequence[dict[str, Any]], key: str) -> None:
    ticker = require("matplotlib.ticker")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.set(xscale="log", yscale="log")
    for k, name in enumerate(dict.fromkeys(row["series"] for row in rows)):
        line = [row for row in rows if row["series"] == name and row.get(key)]
        xs, ys = [row["at"] for row in line], [row[key] for row in line]
        axes.plot(xs, ys, label=name, color=COLOURS[k], lw=1.6, marker="o", ms=4)
    values = sorted({row["at"] for row in rows})
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(x=0)
