"""The partition as a picture: clients across, classes upwards, sizes above."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fad._errors import DataError
from fad._optional import require
from fad.data._checks import positive
from fad.data._label_counts import LabelCounts, label_counts

# One of Okabe and Ito's colours, which colour-blind readers can tell apart, and a map
# whose order shows in the lightness alone.
_COLOUR, _MAP = "#0072B2", "Blues"
_STRIPES = 1000  # at most in a heat map: the figure has few more pixels
_NAMES, _CHARACTERS = 40, 16  # named ticks on an axis, and how much of a name
_CELL, _CHARACTER = 0.28, 0.085  # inches


def figure(
    examples: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    *,
    path: str | os.PathLike[str] | None = None,
    label: str = "y",
    names: Sequence[str] | None = None,
    title: str | None = None,
    max_clients: int = 100,
) -> Any:
    """Draw the clients of ``Federated.figure``.

    Beyond 1,000 clients a stripe of the heat map is the mean of neighbours.
    """
    counts = label_counts("Federated.figure", examples, offsets, label)
    max_clients = positive("Federated.figure", "max_clients", max_clients)
    sizes = np.diff(offsets)
    title = title or f"{len(sizes):,} clients, {sizes.sum():,} examples"
    if counts is None:
        drawn = _histogram(title, sizes)
    elif len(sizes) <= max_clients:
        drawn = _circles(title, counts, sizes, names)
    else:
        drawn = _heat(title, counts, sizes)
    if path is not None:
        drawn.savefig(path)
    return drawn


def _matplotlib(module: str) -> Any:
    needs = "fad.data.Federated.figure(): drawing needs"
    hint = ". describe() needs none."
    return require(f"matplotlib.{module}", DataError, needs, hint)


def _new(title: str, width: float, height: float) -> Any:
    """Return an empty figure of this size in inches."""
    size = (width, height)
    drawn = _matplotlib("figure").Figure(figsize=size, dpi=150, layout="constrained")
    _matplotlib("backends.backend_agg").FigureCanvasAgg(drawn)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return drawn


def _panels(
    title: str, classes: np.ndarray, width: float, under: float
) -> tuple[Any, Any, Any]:
    """Return a figure with a panel for sizes above one with a row per class.

    ``under`` is the height of the names of clients.
    """
    rows = float(np.clip(_CELL * len(classes), 1, 7))
    drawn = _new(title, width, rows + under + 1.9)
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(0.8, rows))
    above.spines[["top", "right"]].set_visible(False)
    above.tick_params(bottom=False)
    above.set_ylabel("examples")
    above.yaxis.set_major_locator(_whole(2))
    below.set(ylabel="class", ylim=(-0.6, len(classes) - 0.4))
    _ticks(below.yaxis, [str(value) for value in classes])
    return drawn, above, below


def _whole(ticks: int) -> Any:
    """Return what places about so many ticks at round whole numbers."""
    steps = (1, 2, 5, 10)
    return _matplotlib("ticker").MaxNLocator(ticks, integer=True, steps=steps)


def _ticks(axis: Any, names: Sequence[str] | None) -> None:
    """Name every place of an axis, or number some of them where they are many."""
    if names is None or len(names) > _NAMES:
        axis.set_major_locator(_whole(10))
    else:
        axis.set_ticks(range(len(names)), [_clipped(name) for name in names])


def _clipped(name: str) -> str:
    return name if len(name) <= _CHARACTERS else f"{name[: _CHARACTERS - 1]}…"


def _circles(
    title: str, counts: LabelCounts, sizes: np.ndarray, names: Sequence[str] | None
) -> Any:
    width = float(np.clip(1.5 + _CELL * len(sizes), 5.5, 14))
    if names is not None and len(names) > _NAMES:
        names = None
    longest = max(map(len, map(_clipped, names or [""]))) * _CHARACTER
    upright = longest > (width - 1.5) / len(sizes)
    drawn, above, below = _panels(title, counts.values, width, upright * longest)
    above.bar(np.arange(len(sizes)), sizes, color=_COLOUR, width=0.7)
    below.spines[["top", "right"]].set_visible(False)
    below.grid(color="0.92")
    below.set_axisbelow(True)
    below.set(xlim=(-0.6, len(sizes) - 0.4))
    below.set_xlabel(f"client (the largest circle is {counts.count.max():,} examples)")
    _ticks(below.xaxis, names)
    below.tick_params(axis="x", labelrotation=90 * upright)
    look = {"color": _COLOUR, "alpha": 0.8, "linewidths": 0}
    circles = below.scatter(counts.client, counts.label, **look)
    # The largest circle fills its cell, whose size is known once all is laid out; a
    # narrow cell may overflow, since few circles are large.
    drawn.draw_without_rendering()
    box = below.get_window_extent()
    cell = min(1.6 * box.width / len(sizes), 0.95 * box.height / len(counts.values))
    points = cell * 72 / drawn.dpi
    circles.set_sizes(counts.count / counts.count.max() * points**2)
    return drawn


def _heat(title: str, counts: LabelCounts, sizes: np.ndarray) -> Any:
    drawn, above, below = _panels(title, counts.values, 9, 0)
    place = _places(counts, sizes)
    stripes = min(_STRIPES, len(sizes))
    stripe = place * stripes // len(sizes)
    number, labels = np.bincount(stripe), len(counts.values)
    cells = stripe[counts.client] * labels + counts.label
    shares = np.bincount(cells, counts.count / sizes[counts.client], stripes * labels)
    shares = shares.reshape(stripes, labels).T / number
    edges = np.searchsorted(np.sort(stripe), np.arange(stripes + 1))
    mean = np.bincount(stripe, sizes) / number
    above.stairs(mean, edges, fill=True, color=_COLOUR)
    above.set_ylim(bottom=0)
    rows = np.arange(labels + 1) - 0.5
    look = {"cmap": _MAP, "vmin": 0, "rasterized": True}
    mesh = below.pcolormesh(edges, rows, shares, **look)
    below.set(xlim=(0, len(sizes)), ylim=(-0.5, labels - 0.5))
    below.set_xlabel("clients, sorted by their most frequent class")
    below.xaxis.set_major_locator(_whole(10))
    drawn.colorbar(mesh, ax=(above, below), label="share of a client's examples")
    return drawn


def _places(counts: LabelCounts, sizes: np.ndarray) -> np.ndarray:
    """Return the place of each client: by its main class, then the share of that."""
    share = counts.count / sizes[counts.client]
    # Each client's largest share last, and of equal ones the first label's.
    order = np.lexsort((-counts.label, share, counts.client))
    last = order[np.flatnonzero(np.diff(counts.client[order], append=len(sizes)))]
    main = np.full(len(sizes), len(counts.values))  # empty clients come last
    most = np.zeros(len(sizes))
    main[counts.client[last]] = counts.label[last]
    most[counts.client[last]] = share[last]
    place = np.empty(len(sizes), np.int64)
    place[np.lexsort((-most, main))] = np.arange(len(sizes))
    return place


def _histogram(title: str, sizes: np.ndarray) -> Any:
    drawn = _new(title, 6, 3.2)
    axes = drawn.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    # Each bin holds equally many whole numbers.
    step = -(-(int(sizes.max()) + 1) // 40)
    bins = np.arange(0, sizes.max() + step + 1, step) - 0.5
    axes.hist(sizes, bins, color=_COLOUR)
    axes.set(xlabel="examples at a client", ylabel="clients")
    axes.xaxis.set_major_locator(_whole(10))
    axes.yaxis.set_major_locator(_whole(6))
    return drawn
