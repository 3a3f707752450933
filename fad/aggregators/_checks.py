"""What aggregators are made with: counts, shares and numbers."""

import math
from typing import Any

import jax

from fad._errors import ConfigError, FadError


def check_count(
    call: str, name: str, value: Any, *, least: int = 1, most: int | None = None
) -> None:
    """Refuse what is no int from ``least`` to ``most``.

    Raises:
        ConfigError: It is none.
    """
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not good or (most is not None and value > most):
        end = f"at least {least}" if most is None else f"{least} to {most}"
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


def check_number(
    call: str,
    name: str,
    value: Any,
    *,
    low: float | None = None,
    high: float = math.inf,
) -> None:
    """Refuse what is no finite number, positive or, if given, at least ``low``.

    Raises:
        FadError: It is none, or above ``high``; what is traced passes.
    """
    try:
        x = math.nan if isinstance(value, str | bool) else float(value)
    except jax.errors.ConcretizationTypeError:
        return
    except (TypeError, ValueError):
        x = math.nan
    above = x > 0 if low is None else x >= low
    if not (above and x <= high and x < math.inf):
        least = "above 0" if low is None else f"from {low}"
        most = "" if high == math.inf else f" to {high}"
        raise FadError(
            f"{call}: expected {name} as a finite number {least}{most}, got {value!r}."
        )
