"""Figures, drawn from the metrics files alone so that they can be drawn again."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fad._errors import RunError
from fad.experiment._disk import writing
from fad.experiment._labels import label_ends
from fad.experiment._lazy import require
from fad.experiment._metrics import Row, read_rows, trailing_means

# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow left out.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run in a figure.

    Attributes:
        label: Written at the curve's end.
        rows: The rows of the run's metrics file.
        grey: Drawn thin and grey, without a label.
    """

    label: str
    rows: Sequence[Row]
    grey: bool = False


def plot_run(folder: str | Path, *, title: str = "") -> Path:
    """Draw a run's metric against rounds and against MB per client.

    Args:
        folder: The run folder; its ``metrics.jsonl`` is read.
        title: The title; the folder's name without one.

    Returns:
        The file ``figure.png`` in the folder.

    Raises:
        RunError: There are no metrics to draw; the figure cannot be written.

    Example:
        >>> import tempfile
        >>> from fad.experiment import JsonlWriter
        >>> row = {"loss": 0.5, "bytes_down": 1000, "bytes_up": 1000}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = JsonlWriter(Path(folder, "metrics.jsonl"))
        ...     writer.write(1, row)
        ...     writer.write(2, row)
        ...     writer.close()
        ...     plot_run(folder).name
        'figure.png'
    """
    folder = Path(folder)
    rows = read_rows(folder / "metrics.jsonl")
    metric = _main_metric(rows)
    if metric is None:
        raise RunError(f"{folder / 'metrics.jsonl'}: no metrics to draw")
    last = [row[metric] for row in rows if metric in row][-1]
    curves = [Curve(f"{last:.4g}", rows)]
    return plot(curves, folder / "figure.png", title=title or folder.name, name=metric)


def plot(
    curves: Sequence[Curve],
    path: Path,
    *,
    title: str,
    name: str = "accuracy",
    window: int = 1,
    trace: str | None = None,
    target: float | None = None,
) -> Path:
    """Draw a metric against rounds, and beside it a trace or the metric against MB.

    Args:
        curves: The runs.
        path: The file to write.
        title: The title.
        name: The metric.
        window: The metric is drawn as its mean over this many last values.
        trace: A step metric for the second panel, on a logarithmic scale; without it
            the second panel shows the metric against MB per client.
        target: A level of the metric to mark.

    Returns:
        ``path``.
    """
    figure = require("matplotlib.figure").Figure(
        figsize=(12, 4.2), dpi=150, layout="constrained"
    )
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    mean = f", mean of the last {window}" if window > 1 else ""
    grey = " (grey: the rest of a grid)" if any(c.grey for c in curves) else ""
    _draw(left, curves, _round, name, window)
    left.set(xlabel=f"round{grey}", ylabel=f"test {name}{mean}")
    _logarithmic_if(left, 1000)
    if target is not None:
        level, ends = f"target {target:.3f}", left.get_xlim()
        look = {"color": "0.25", "lw": 1, "ls": (0, (1, 1.5)), "zorder": 3}
        left.plot(ends, (target, target), label=level, **look)
    if trace is None:
        _draw(right, curves, _megabytes, name, window)
        right.set(xlabel="MB per client, down and up", ylabel=f"test {name}{mean}")
        _logarithmic_if(right, 1000)
    else:
        _draw(right, [c for c in curves if not c.grey], _round, trace)
        right.set(xlabel="round", ylabel=trace.replace("_", " "))
        _logarithmic_if(right, 1)
        for line in right.lines:  # Not every algorithm has the trace.
            line.set_label(line.get_label() if len(line.get_xdata()) else "_none")
    label_ends(figure)
    with writing(path):
        figure.savefig(path)
    return path


def _main_metric(rows: Sequence[Row]) -> str | None:
    """Return the metric to draw: accuracy, else a loss, else the first there is."""
    own = ("round", "seconds", "bytes_down", "bytes_up")
    names = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in own]
    for name in ("accuracy", "loss", "train_loss"):
        if name in names:
            return name
    return names[0] if names else None


def _round(row: Row) -> float:
    return row["round"]


def _megabytes(row: Row) -> float:
    return (row["bytes_down"] + row["bytes_up"]) / 1e6


def _draw(
    axes: Any,
    curves: Sequence[Curve],
    x_of: Callable[[Row], float],
    name: str,
    window: int = 1,
) -> None:
    """Draw the curves: grey ones below, the others in colour."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    bold = 0
    for curve in curves:
        values = trailing_means(curve.rows, name, window=window)
        look: dict[str, Any] = {"color": "0.8", "lw": 0.8, "zorder": 1}
        if not curve.grey:
            style = _STYLES[bold // len(_COLOURS) % len(_STYLES)]
            look = {"color": _COLOURS[bold % len(_COLOURS)], "ls": style, "lw": 1.6}
            bold += 1
        label = "_grey" if curve.grey else curve.label
        look["marker"] = "o" if len(values) == 1 else None
        xs, ys = [x_of(row) for row, _ in values], [y for _, y in values]
        axes.plot(xs, ys, label=label, **look)
    axes.margins(x=0)


def _logarithmic_if(axes: Any, ratio: float) -> None:
    """Use a logarithmic scale for positive values that span at least ``ratio``."""
    ys = [y for line in axes.lines for y in line.get_ydata()]
    if not ys or min(ys) <= 0 or max(ys) < ratio * min(ys):
        return
    ticker = require("matplotlib.ticker")
    axes.set_yscale("log")
    if max(ys) < 1000 * min(ys):
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
