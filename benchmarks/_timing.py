"""Times of several contenders, taken in turns so that a busy spell hits all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """The median of some times, with their spread, in seconds."""

    median: float
    least: float
    lower: float
    upper: float
    turns: int

    @classmethod
    def of(cls, times: Sequence[float]) -> "Spread":
        """Summarise at least one time."""
        if len(times) == 1:
            return cls(times[0], times[0], times[0], times[0], 1)
        lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, min(times), lower, upper, len(times))

    def __str__(self) -> str:
        """Read as ``median (least; lower to upper quartile)``."""
        if self.turns == 1:
            return f"{self.median:.3f} (once)"
        return (
            f"{self.median:.3f} ({self.least:.3f}; "
            f"{self.lower:.3f} to {self.upper:.3f})"
        )


def interleave(
    contenders: Mapping[str, Callable[[int], float | None]], turns: Sequence[int]
) -> dict[str, list[float]]:
    """Let each contender take every turn, starting with another one each time.

    Args:
        contenders: By name, a function of the turn that returns its seconds, or None
            where it takes no part.
        turns: The turns' numbers.

    Returns:
        The seconds of each contender, turn by turn.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for k, turn in enumerate(turns):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            taken = contenders[name](turn)
            if taken is not None:
                times[name].append(taken)
    return times
