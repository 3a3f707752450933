"""The trimmed mean and the median, coordinate by coordinate."""

import numbers
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import FadError
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._raw import along, mean_of, raw


def trimmed_mean(fraction: Any) -> Aggregator:
    """Average each coordinate without its largest and its smallest values.

    Of ``m`` clients the ``floor(fraction m)`` largest and as many of the smallest
    values are dropped, in each coordinate by itself. ``m`` counts the clients of
    positive weight; they count all the same, whatever their weights. Without any the
    step is zero.

    It needs the clients' raw updates at the server: no secure sum can be under it, and
    ``fad.check`` refuses it unless told ``allow="unsafe_gather"``. The derivative is
    that of the mean of the values that are kept, almost everywhere.

    Args:
        fraction: In [0, 1/2), a number: the fraction of corrupted clients to survive.
            ``0.29`` of 100 clients are 29, as written, not as rounded to binary.

    Returns:
        The aggregator.

    Raises:
        FadError: ``fraction`` is no such number; when it is run, the chain sums in a
            way of its own.

    Example:
        >>> import fad
        >>> @fad.program
        ... def mean(updates, weights):
        ...     return trimmed_mean(0.25).combine(updates, weights, fad.sum)
        >>> updates = fad.AtClients(jnp.array([1.0, 2.0, 4.0, 1e9]))
        >>> float(mean(updates, fad.AtClients(jnp.ones(4))))
        3.0

    References:
        Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical
        Rates, ICML 2018, definition 2.
    """
    call = "fad.aggregators.trimmed_mean(fraction)"
    real = isinstance(fraction, numbers.Real) and not isinstance(fraction, bool)
    if not (real and 0 <= float(fraction) < 0.5):
        raise FadError(
            f"{call}: expected a number in [0, 1/2), got {fraction!r}. It is dropped "
            "on each side; fad.aggregators.median() drops the most."
        )
    exact = Fraction(str(fraction))
    return _trimmed(call, lambda m: int(exact * m))


def median() -> Aggregator:
    """Take the median of each coordinate; of an even number, the mean of the two.

    Over the clients of positive weight, which count all the same, whatever their
    weights. Without any the step is zero.

    It needs the clients' raw updates at the server: no secure sum can be under it, and
    ``fad.check`` refuses it unless told ``allow="unsafe_gather"``. The derivative is
    that of the values in the middle, almost everywhere.

    Returns:
        The aggregator.

    Raises:
        FadError: When it is run, the chain sums in a way of its own.

    Example:
        >>> import fad
        >>> @fad.program
        ... def middle(updates, weights):
        ...     return median().combine(updates, weights, fad.sum)
        >>> updates = fad.AtClients(jnp.array([1.0, 2.0, 1e9]))
        >>> float(middle(updates, fad.AtClients(jnp.ones(3))))
        2.0

    References:
        Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical
        Rates, ICML 2018, definition 1.
    """
    return _trimmed("fad.aggregators.median()", lambda m: max(m - 1, 0) // 2)


def _trimmed(call: str, dropped: Callable[[int], int]) -> Aggregator:
    """Drop ``dropped(m)`` of ``m`` values on each side, and average the rest."""

    def combine(messages, weights, total):
        values, here = raw(call, messages, weights, total)
        n = here.shape[0]
        drop = jnp.asarray(np.array([dropped(m) for m in range(n + 1)]))[here.sum()]
        rank = jnp.arange(n)
        kept = (rank >= drop) & (rank < here.sum() - drop)

        def leaf(x):
            # Who is not there stands after everybody else.
            x = jnp.where(along(here, x), x, jnp.full_like(x, jnp.inf))
            return mean_of(kept, jnp.sort(x, axis=0))

        return jax.tree.map(leaf, values)

    return Aggregator(combine=combine)
