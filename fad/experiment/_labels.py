"""The names of the lines of a figure, written where the lines end."""

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from fad.experiment._lazy import require

_FONT_SIZE = 9
_DISTANCES = (12, 20, 30, 42, 56, 72, 90)  # Points from a line's end to its label.
_DIRECTIONS = 24


def label_ends(figure: Any) -> None:
    """Write each line's label at its end: beside the axes, or inside where it is early.

    A line whose label begins with an underscore has none; one without points is named
    at the bottom.
    """
    figure.draw_without_rendering()  # The label heights depend on the layout.
    for axes in figure.axes:
        _label_beside(axes, [line for line in _named(axes) if not _is_early(line)])
    figure.draw_without_rendering()  # The labels beside the axes moved everything.
    for axes in figure.axes:
        _label_inside(axes, [line for line in _named(axes) if _is_early(line)])


def _named(axes: Any) -> list[Any]:
    return [line for line in axes.lines if not line.get_label().startswith("_")]


def _is_early(line: Any) -> bool:
    """Say whether a line ends so early that its end would be far from its label."""
    left, right = line.axes.get_xlim()
    xs = line.get_xdata()
    return len(xs) > 0 and xs[-1] < right - 0.03 * (right - left)


def _end(line: Any) -> tuple[float, float]:
    return line.get_xdata()[-1], line.get_ydata()[-1]


def _label_beside(axes: Any, lines: Sequence[Any]) -> None:
    """Write labels to the right of the axes, moved apart where they would touch."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {
        line: to_axes.transform(_end(line))[1] if len(line.get_xdata()) else 0.0
        for line in lines
    }
    lines = sorted(lines, key=lambda line: heights[line])
    texts = [_wrapped(line) for line in lines]
    line_height = 1.25 * _FONT_SIZE * axes.figure.dpi / 72 / axes.bbox.height
    sizes = [(text.count("\n") + 1) * line_height for text in texts]
    places = _spread([float(heights[line]) for line in lines], sizes)
    for line, text, place in zip(lines, texts, places, strict=True):
        look = {"va": "center", "fontsize": _FONT_SIZE, "color": line.get_color()}
        if not len(line.get_xdata()):
            axes.text(1.04, place, text, transform=axes.transAxes, **look)
            continue
        axes.annotate(
            text, _end(line), xytext=(1.04, place), textcoords="axes fraction",
            annotation_clip=False, **look,
            arrowprops={
                "arrowstyle": "-", "color": line.get_color(), "lw": 0.6,
                "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2,
            },
        )  # fmt: skip


def _label_inside(axes: Any, lines: Sequence[Any]) -> None:
    """Write labels near the ends of lines, where they hide least."""
    path = require("matplotlib.path").Path
    extent = require("matplotlib.text").Text.get_window_extent
    renderer = axes.figure.canvas.get_renderer()
    points = axes.figure.dpi / 72
    drawn = [
        line.get_transform().transform_path(line.get_path())
        for line in axes.lines
        if len(line.get_xdata())
    ]
    boxes: list[Any] = []
    for line in lines:
        text = _annotation(axes, line)
        text.update_positions(renderer)
        size = extent(text, renderer)  # Without the leader.
        end = axes.transData.transform(_end(line))

        def cost(move: tuple[float, float], size: Any = size, end: Any = end) -> tuple:
            """Count what a place would hide, worst first, then what leads to it."""
            box = size.translated(move[0] * points, move[1] * points).padded(2)
            near = [min(max(x, low), high) for x, low, high in zip(
                end, box.min, box.max, strict=True)]  # fmt: skip
            start = end + 0.3 * (near - end)  # Beyond the line's own last stroke.
            leader = path([start, near])
            return (
                sum(box.overlaps(b) or leader.intersects_bbox(b) for b in boxes),
                not all(axes.bbox.contains(*corner) for corner in box.corners()),
                sum(p.intersects_bbox(box, filled=False) for p in drawn),
                math.hypot(*(near - end)) / points
                + 40 * sum(p.intersects_path(leader, filled=False) for p in drawn),
            )

        move = min(_moves(size.width / points, size.height / points), key=cost)
        text.xyann = move
        boxes.append(size.translated(move[0] * points, move[1] * points))


def _annotation(axes: Any, line: Any) -> Any:
    """Mark a line's end and write its label there, with a leader for when it moves."""
    line.set(marker="o", markevery=[-1], markersize=4)
    text = axes.annotate(
        _wrapped(line), _end(line), xytext=(0, 0), textcoords="offset points",
        ha="center", va="center", fontsize=_FONT_SIZE, color=line.get_color(),
        arrowprops={
            "arrowstyle": "-", "color": line.get_color(), "lw": 0.6,
            "shrinkA": 1, "shrinkB": 3,
        },
    )  # fmt: skip
    text.set_in_layout(False)
    return text


def _moves(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Yield places of a label's centre around a point, both in points."""
    for distance, step in itertools.product(_DISTANCES, range(_DIRECTIONS)):
        angle = 2 * math.pi * step / _DIRECTIONS
        across, up = math.cos(angle), math.sin(angle)
        yield across * (distance + width / 2), up * (distance + height / 2)


def _wrapped(line: Any) -> str:
    """Return a line's label in lines of 24 characters, parentheses on their own."""
    label = line.get_label()
    if len(label) <= 24:
        return label
    parts = label.replace(" (", "\n(").splitlines()
    return "\n".join(textwrap.fill(part, 24) for part in parts)


def _spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Move ascending positions apart by their sizes, as little as a sweep can.

    Example:
        >>> [round(x, 2) for x in _spread([0.5, 0.5, 0.9], [0.1, 0.1, 0.1])]
        [0.5, 0.6, 0.9]
    """
    places = list(wanted)
    for i in range(1, len(places)):
        gap = (sizes[i - 1] + sizes[i]) / 2
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > 1:
        places[-1] = max(1.0, wanted[-1])
        for i in range(len(places) - 2, -1, -1):
            gap = (sizes[i] + sizes[i + 1]) / 2
            places[i] = min(places[i], places[i + 1] - gap)
    return places
