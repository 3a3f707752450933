"""Where the numbers of a run go: one JSON object a line."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fad._errors import RunError
from fad.experiment._disk import writing

Row = dict[str, Any]

_TEXT = ("nan", "inf", "-inf")


class MetricWriter(Protocol):
    """Whatever takes the metrics of a round."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of the round ``step``."""
        ...


class MemoryWriter:
    """Keeps the rows in a list.

    Example:
        >>> writer = MemoryWriter()
        >>> writer.write(1, {"loss": 0.5})
        >>> writer.rows
        [{'round': 1, 'loss': 0.5}]
    """

    def __init__(self) -> None:
        """Start empty."""
        self.rows: list[Row] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row."""
        self.rows.append({"round": step, **metrics})


class JsonlWriter:
    """Appends one JSON object a line to a file, flushed at every round.

    JSON has no infinity nor NaN: they are written as strings, which ``read_rows`` (and
    ``float``) turns back.

    Args:
        path: The file; rows are appended to it.

    Raises:
        RunError: The file cannot be written; the disk is full.
    """

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._path = path
        with writing(path):
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line."""
        row = {"round": step, **metrics}
        row = {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
        with writing(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self._path):
            self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a metrics file; a last line cut short is left out.

    Args:
        path: The file; a missing one has no rows.

    Returns:
        The rows, each with ``round``.

    Raises:
        RunError: A line before the last is not a JSON object; the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = JsonlWriter(Path(folder, "metrics.jsonl"))
        ...     writer.write(1, {"loss": math.inf})
        ...     writer.close()
        ...     read_rows(Path(folder, "metrics.jsonl"))
        [{'round': 1, 'loss': inf}]
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({k: float(v) if v in _TEXT else v for k, v in row.items()})
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                break  # The process was killed while it wrote this line.
            raise RunError(f"{path}:{number}: not a JSON object: {error}") from None
    return rows


def keep_rows(path: Path, last_round: int) -> list[Row]:
    """Drop the rows after ``last_round`` from a metrics file, and return the others."""
    rows = [row for row in read_rows(path) if row["round"] <= last_round]
    half = path.with_suffix(".tmp")
    with writing(half):
        half.unlink(missing_ok=True)
    writer = JsonlWriter(half)
    for row in rows:
        writer.write(row["round"], {k: v for k, v in row.items() if k != "round"})
    writer.close()
    with writing(path):
        os.replace(half, path)
    return rows


def trailing_means(
    rows: Sequence[Row], metric: str, *, window: int = 1
) -> list[tuple[Row, float]]:
    """Return the rows that have a metric, each with the mean of its last values.

    Args:
        rows: The rows of a run.
        metric: The metric; rows where it is missing or not finite are left out.
        window: Number of values to average, fewer at the start.

    Returns:
        Pairs of a row and the mean up to it.

    Example:
        >>> rows = [{"round": t, "loss": float(t)} for t in (1, 2, 3)]
        >>> [mean for _, mean in trailing_means(rows, "loss", window=2)]
        [1.0, 1.5, 2.5]
    """
    kept = [row for row in rows if math.isfinite(row.get(metric, math.nan))]
    values = [row[metric] for row in kept]
    spans = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [(row, sum(s) / len(s)) for row, s in zip(kept, spans, strict=True)]
