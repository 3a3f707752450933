"""How many: the sizes that aggregators are made with."""

from typing import Any

from fad._errors import ConfigError, FadError


def check_count(call: str, name: str, value: Any, *, most: int | None = None) -> None:
    """Refuse what is no int from 1 to ``most``.

    Raises:
        ConfigError: It is none.
    """
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not good or (most is not None and value > most):
        end = "at least 1" if most is None else f"1 to {most}"
        raise ConfigError(f"{call}: expected {name} as an int, {end}; got {value!r}.")


def check_share(call: str, k: Any) -> None:
    """Refuse a k that is neither a number of coordinates nor a share of them.

    Raises:
        ConfigError: It is neither.
    """
    count = isinstance(k, int) and not isinstance(k, bool) and k >= 1
    if not count and not (isinstance(k, float) and 0 < k <= 1):
        raise ConfigError(
            f"{call}: expected k as an int of at least 1, or as a float in (0, 1], the "
            f"share of all coordinates; got {k!r}."
        )


def share(call: str, k: int | float, size: int) -> int:
    """Return how many of ``size`` coordinates k means.

    Raises:
        FadError: More than there are.
    """
    count = k if isinstance(k, int) else max(1, round(k * size))
    if count > size:
        raise FadError(
            f"{call}: an update has {size} coordinates; expected k of at most {size}. "
            "Give a share, such as k=0.01, to fit models of any size."
        )
    return count
