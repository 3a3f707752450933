"""The table at the end of a run."""

from collections.abc import Sequence
from typing import Any

from fad._errors import RunError
from fad.experiment._lazy import require
from fad.experiment._metrics import Row

_NARROWEST = 16  # Characters for the names of runs.


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Return a run's last numbers: final metrics, rounds, MB per client, seconds.

    Args:
        rows: The rows of the run's metrics file.

    Returns:
        The latest value of every metric, ``rounds``, ``mb_down`` and ``mb_up`` (per
        client that took part in every round) and ``seconds`` (of all rounds).

    Example:
        >>> row = {"round": 1, "bytes_down": 2e6, "bytes_up": 1e6, "seconds": 0.5}
        >>> summary([row])
        {'rounds': 1, 'mb_down': 2.0, 'mb_up': 1.0, 'seconds': 0.5}
    """
    last: Row = {}
    for row in rows:
        last |= row
    own = ("round", "bytes_down", "bytes_up", "seconds")
    metrics = {k: v for k, v in last.items() if k not in own}
    return {
        **metrics,
        "rounds": last["round"],
        "mb_down": last["bytes_down"] / 1e6,
        "mb_up": last["bytes_up"] / 1e6,
        "seconds": sum(row["seconds"] for row in rows),
    }


def print_report(name: str, rows: Sequence[Row], *, console: Any = None) -> None:
    """Print the table of one run.

    Args:
        name: Name of the run.
        rows: The rows of its metrics file.
        console: A ``rich`` console; standard output without one.

    Raises:
        RunError: There are no rows.

    Example:
        >>> import rich.console, sys
        >>> row = {"round": 1, "bytes_down": 2e6, "bytes_up": 1e6, "seconds": 0.5}
        >>> narrow = rich.console.Console(width=16, file=sys.stdout)
        >>> print_report("short", [row | {"accuracy": 0.9}], console=narrow)
        short
          accuracy: 0.9000
          loss: -
          rounds: 1
          MB down: 2.000
          MB up: 1.000
          seconds: 0.50
        MB: per client of the cohort, over the whole run
    """
    if not rows:
        raise RunError("print_report: rows: expected at least one row, got none")
    numbers = summary(rows)
    columns = {
        "accuracy": f"{numbers['accuracy']:.4f}" if "accuracy" in numbers else "-",
        "loss": f"{numbers['loss']:.4f}" if "loss" in numbers else "-",
        "rounds": f"{numbers['rounds']}",
        "MB down": f"{numbers['mb_down']:.3f}",
        "MB up": f"{numbers['mb_up']:.3f}",
        "seconds": f"{numbers['seconds']:.2f}",
    }
    print_table(["run", *columns], [[name, *columns.values()]], console=console)


def print_table(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    caption: str = "MB: per client of the cohort, over the whole run",
    console: Any = None,
) -> None:
    """Print a table: the first column is text, the others are numbers.

    Where the terminal is too narrow for it, the lines become short lists: no number
    and no name is cut.

    Args:
        head: Names of the columns.
        lines: The cells.
        caption: A line below.
        console: A ``rich`` console; standard output without one.
    """
    console = console or require("rich.console").Console()
    words = [name.split() for name in head]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [
        max(width, *map(len, name))
        for width, name in zip(widths[1:], words[1:], strict=True)
    ]
    gap = 2  # Between two columns.
    room = console.width - 3 - sum(gap + width for width in numbers)
    if room < min(widths[0], _NARROWEST):
        _print_lists(head, lines, caption, console)
        return
    box = require("rich.box").SIMPLE_HEAD
    table = require("rich.table").Table(box=box, caption=caption, padding=(0, 1, 0, 0))
    table.add_column(head[0], width=min(widths[0], room), overflow="fold")
    for name, width in zip(words[1:], numbers, strict=True):
        table.add_column("\n".join(name), justify="right", width=width, no_wrap=True)
    for cells in lines:
        table.add_row(*map(require("rich.markup").escape, cells))
    console.print(table)


def _print_lists(
    head: Sequence[str], lines: Sequence[Sequence[str]], caption: str, console: Any
) -> None:
    text = []
    for first, *cells in lines:
        text.append(first)
        text += [f"  {k}: {v}" for k, v in zip(head[1:], cells, strict=True)]
    console.out("\n".join([*text, caption]), highlight=False)
