"""The figure of a meta-training: the objective of each family against meta-steps."""

from pathlib import Path

from fad.experiment._disk import writing
from fad.experiment._figure import _COLOURS
from fad.experiment._lazy import require
from fad.experiment._metrics import read_rows, trailing_means

_PREFIX = "loss_"


def plot_meta(folder: Path, *, title: str) -> Path:
    """Draw ``figure.png`` from the metrics of a folder, smoothed over 20 meta-steps."""
    rows = read_rows(folder / "metrics.jsonl")
    names = dict.fromkeys(k for row in rows for k in row if k.startswith(_PREFIX))
    figure = require("matplotlib.figure").Figure(
        figsize=(7, 4.2), dpi=150, layout="constrained"
    )
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, name in enumerate(names):
        points = trailing_means(rows, name, window=20)
        steps, values = [row["round"] for row, _ in points], [v for _, v in points]
        label, colour = name.removeprefix(_PREFIX), _COLOURS[i % len(_COLOURS)]
        axes.plot(steps, values, label=label, color=colour, lw=1.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set(xlabel="meta-step", ylabel="objective, mean of the last 20")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    if names:
        axes.legend(frameon=False, fontsize=8)
    path = folder / "figure.png"
    with writing(path):
        figure.savefig(path)
    return path
