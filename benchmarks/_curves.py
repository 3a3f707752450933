"""Curves of several methods, a panel per federation, means over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._figures import COLOURS
from fad.experiment._lazy import require


def draw(
    results: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    metrics: Mapping[str, str],
    path: Path,
    *,
    every: int,
) -> Path:
    """Draw the mean over seeds of every method, and the seeds' range as a band.

    Args:
        results: Curves over seeds, by panel and method.
        metrics: The panels' metrics.
        path: The file to write.
        every: Rounds between two points of a curve.

    Returns:
        ``path``.
    """
    rows = -(-len(results) // 2)
    figure = require("matplotlib.figure").Figure(
        figsize=(11, 3.6 * rows), dpi=150, layout="constrained"
    )
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, squeeze=False).reshape(-1)
    for axes, (name, methods) in zip(panels, results.items(), strict=False):
        _panel(axes, methods, every)
        axes.set(xlabel="round", ylabel=f"test {metrics[name]}")
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    figure.savefig(path)
    return path


def _panel(axes: Any, methods: Mapping[str, Any], every: int) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    for k, (label, curves) in enumerate(methods.items()):
        points = [sorted(point) for point in zip(*curves, strict=True)]
        rounds = [every * (i + 1) for i in range(len(points))]
        mean = [sum(point) / len(point) for point in points]
        low, high = [point[0] for point in points], [point[-1] for point in points]
        axes.plot(rounds, mean, label=label, color=COLOURS[k], lw=1.6)
        axes.fill_between(rounds, low, high, color=COLOURS[k], alpha=0.15, lw=0)
    axes.margins(x=0)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
