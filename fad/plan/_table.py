"""A plan as a plain-text table, at most 100 columns wide."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fad.plan._fold import Folded, fold
from fad.plan._text import (
    bytes_text,
    clip,
    flops_text,
    names_text,
    rounds_text,
    wires_text,
)

if TYPE_CHECKING:
    from fad.plan._plan import Plan

_WIDTH, _GAP, _NAMES = 100, 2, 20
_HEAD = ("round", "down", "client work", "up", "keeps", "back")
_DOWN, _WORK, _UP = 1, 2, 3  # the columns that hold lists
_LEGEND = (
    "Per client. keeps: state held for a later round when this one ends; back: clients",
    "of an earlier round must come back.",
)
_UNEVEN = "Numbers are means over all clients, of which not all do the same."

Row = list[tuple[str, ...]]  # by column, the lines of its cell


def table(plan: "Plan") -> str:
    """Return the table of a plan's rounds, two lines each, equal ones folded."""
    folded = [(f, b.times) for b in fold(plan.rounds) for f in b.pattern]
    head, total = [(name,) for name in _HEAD], _total(plan)
    rows = [_numbers(f, times) for f, times in folded]
    widths = _widths([head, total, *rows])
    taken = sum(w for i, w in enumerate(widths) if i not in (_DOWN, _WORK, _UP))
    types = (_WIDTH - _GAP * (len(widths) - 1) - taken - _NAMES) // 2
    rows = [
        _with_lists(row, f, types) for row, (f, _) in zip(rows, folded, strict=True)
    ]
    widths = _widths([head, total, *rows])
    rule = "-" * (sum(widths) + _GAP * (len(widths) - 1))
    legend = [*_LEGEND, *[_UNEVEN] * any(r.uneven for r in plan.rounds)]
    title = clip(f"{plan.name}: {plan.clients} clients", _WIDTH)
    lines = [title, "", *_lines(head, widths), rule]
    lines += [line for row in rows for line in _lines(row, widths)]
    return "\n".join([*lines, rule, *_lines(total, widths), "", *legend])


def _numbers(folded: Folded, times: int) -> Row:
    r, (first, last) = folded.round, folded.kept
    return [
        (rounds_text(folded.numbers), "" if times == 1 else f"{times} times"),
        (bytes_text(r.bytes_down),),
        (flops_text(r.flops),),
        (bytes_text(r.bytes_up),),
        (bytes_text(first), "" if first == last else f"to {bytes_text(last)}"),
        ("yes" if r.returns else "no",),
    ]


def _with_lists(row: Row, folded: Folded, width: int) -> Row:
    r, row = folded.round, list(row)
    row[_DOWN] += (wires_text(r.down, width),)
    row[_WORK] = (names_text(r.work, _NAMES), *row[_WORK])
    row[_UP] += (wires_text(r.up, width),)
    return row


def _total(plan: "Plan") -> Row:
    cost = plan.cost()
    return [
        ("total", f"{cost.rounds} round{'s' * (cost.rounds != 1)}"),
        (bytes_text(cost.bytes_down),),
        (flops_text(cost.client_flops),),
        (bytes_text(cost.bytes_up),),
        ("at most", bytes_text(cost.client_state_bytes)),
        ("yes" if cost.same_cohort else "no",),
    ]


def _widths(rows: Sequence[Row]) -> list[int]:
    columns = zip(*rows, strict=True)
    return [max(len(line) for cell in column for line in cell) for column in columns]


def _lines(row: Row, widths: Sequence[int]) -> list[str]:
    lines = []
    for i in range(max(map(len, row))):
        cells = [cell[i] if i < len(cell) else "" for cell in row]
        padded = (c.ljust(w) for c, w in zip(cells, widths, strict=True))
        lines.append((" " * _GAP).join(padded).rstrip())
    return lines
