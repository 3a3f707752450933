"""The schema of a comparison file."""

import dataclasses
import itertools
import re
from typing import Any

from fad._errors import nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One ``[[run]]`` of a comparison.

    Attributes:
        label: Its name in the figure and the table.
        config: The experiment's file, relative to the comparison's.
        set: Values that replace the file's, by dotted key.
        grid: Lists of values by dotted key; each combination runs, the best is kept.
    """

    label: str
    config: str
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the grid."""
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"grid {key!r} must be a list of values, got {values}")

    def points(self) -> list[dict[str, Any]]:
        """Return the overrides of every combination of the grid."""
        rows = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, row, strict=True)) for row in rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison file.

    Attributes:
        name: Name of the run folder.
        title: Title of the figure.
        metric: The test metric that is compared; a loss is better when lower.
        window: The metric is its mean over this many last evaluations, so that one
            lucky round counts for little.
        target: The level of the metric that counts as reached.
        target_of: Instead, the label of the run whose final metric defines it.
        target_fraction: The target as a fraction of that metric.
        trace: A step metric for the second panel.
        run: The runs.
    """

    name: str
    title: str
    metric: str = "accuracy"
    window: int = 1
    target: float | None = None
    target_of: str | None = None
    target_fraction: float = 0.99
    trace: str | None = None
    run: tuple[Entry, ...]

    def __post_init__(self) -> None:
        """Check the labels and the fraction."""
        labels = [entry.label for entry in self.run]
        folders = [slug(label) for label in labels]
        for label, folder in zip(labels, folders, strict=True):
            if folders.count(folder) > 1:
                raise ValueError(f"label {label!r} does not name one run alone")
        if self.target_of is not None and self.target_of not in labels:
            hint = nearest(self.target_of, labels, "labels")
            raise ValueError(
                f"target_of: no run is labelled {self.target_of!r}. {hint}"
            )
        if self.target is not None and self.target_of is not None:
            raise ValueError("give target or target_of, not both")
        if self.window < 1:
            raise ValueError(f"window must be >= 1, got {self.window}")
        if not 0 < self.target_fraction <= 1:
            got = self.target_fraction
            raise ValueError(f"target_fraction must be in (0, 1], got {got}")


def slug(label: str) -> str:
    """Return a folder name for a label.

    Example:
        >>> slug("FAD (server_lr=0.1)")
        'FAD-server_lr-0.1'
    """
    return re.sub(r"[^\w.+=-]+", "-", label).strip("-.").replace("=", "-") or "run"
