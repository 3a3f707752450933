"""Ranges of a config's numbers."""

from typing import Any


def check_range(config: Any, interval: str, *names: str) -> None:
    """Refuse a config whose numbers do not lie in an interval, such as ``[0, 1)``.

    Raises:
        ValueError: Naming the first that does not.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name in names:
        x = getattr(config, name)
        above = x > low or (interval[0] == "[" and x == low)
        below = x < high or (interval[-1] == "]" and x == high)
        if not (above and below):
            raise ValueError(f"{name}: expected in {interval}, got {x!r}")
