"""Folding equal rounds, for the table and the drawing of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fad.plan._values import Round

_LONGEST_PATTERN = 3


@dataclass(frozen=True)
class Folded:
    """Rounds that are equal but for the state kept, as one.

    Attributes:
        numbers: Their numbers, from 1.
        round: The first of them.
        kept: State bytes after the first and after the last of them.
    """

    numbers: range
    round: Round
    kept: tuple[int, int]


@dataclass(frozen=True)
class Block:
    """Consecutive rounds: a pattern of one to three rounds, so many times."""

    pattern: tuple[Folded, ...]
    times: int


def fold(rounds: Sequence[Round]) -> list[Block]:
    """Cut a plan's rounds into blocks, each the longest repetition from there on.

    Example:
        >>> from fad.plan._values import Wire
        >>> a, b = Round(up=[Wire("f32[2]", 8)]), Round(up=[Wire("f32[]", 4)])
        >>> [(len(f.pattern), f.times) for f in fold([a, a, a, b, a, b, a])]
        [(1, 3), (2, 2)]
    """
    blocks, start = [], 0
    while start < len(rounds):
        candidates = [
            (period * _repeats(rounds, start, period), -period)
            for period in range(1, _LONGEST_PATTERN + 1)
            if start + period <= len(rounds)
        ]
        repeated = [c for c in candidates if c[0] > -c[1]]
        length, period = max(repeated, default=(1, -1))
        blocks.append(_block(rounds, start, -period, length))
        start += length
    return blocks


def _block(rounds: Sequence[Round], start: int, period: int, length: int) -> Block:
    pattern = []
    for first in range(start, start + period):
        same = rounds[first : start + length : period]
        numbers = range(first + 1, start + length + 1, period)
        kept = same[0].state_bytes, same[-1].state_bytes
        pattern.append(Folded(numbers, same[0], kept))
    return Block(tuple(pattern), length // period)


def _repeats(rounds: Sequence[Round], start: int, period: int) -> int:
    """Return how often the ``period`` rounds from ``start`` on happen in a row."""
    wanted, times = list(map(_content, rounds[start : start + period])), 1
    if period > 1 and all(content == wanted[0] for content in wanted):
        return times  # one round, repeated
    while True:
        stop = start + (times + 1) * period
        if list(map(_content, rounds[stop - period : stop])) != wanted:
            return times
        if not all(_monotone(rounds[start + i : stop : period]) for i in range(period)):
            return times
        times += 1


def _content(r: Round) -> Any:
    return (
        sorted((w.text, w.nbytes, w.share) for w in r.down),
        sorted((w.name, w.flops, w.share) for w in r.work),
        sorted((w.text, w.nbytes, w.share) for w in r.up),
        r.returns,
    )


def _monotone(rounds: Sequence[Round]) -> bool:
    kept = [r.state_bytes for r in rounds]
    return kept in (sorted(kept), sorted(kept, reverse=True))
