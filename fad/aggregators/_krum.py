"""Krum and multi-Krum: average the updates that lie closest to many others."""

from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.aggregators._aggregator import Aggregator, Message
from fad.aggregators._checks import check_count
from fad.aggregators._norm import wide
from fad.aggregators._raw import mean_of, raw
from fad.aggregators._reporting import reporting

PyTree = Any

_TOO_FEW = "too_few_clients"


def krum(corrupted: int) -> Aggregator:
    """Take the one update that is closest to the others, of which some are corrupted.

    With ``f = corrupted`` of ``n`` clients a client's score is the sum of the squared
    distances to the ``n - f - 2`` nearest others, and the update of the least score is
    the step. ``n`` counts the clients of positive weight; they count all the same,
    whatever their weights.

    It takes ``n >= 2 f + 3``. A smaller cohort is refused when it is traced; where so
    many clients of a cohort are not there that it does not hold, none can be trusted:
    the step is zero. ``too_few_clients``, shown after a round, is 1 then, else 0.

    It needs the clients' raw updates at the server: no secure sum can be under it, and
    ``fad.check`` refuses it unless told ``allow="unsafe_gather"``. The derivative is
    that of the update that is taken, almost everywhere. In a chain it stands last.

    Args:
        corrupted: The number of corrupted clients to survive, ``f``.

    Returns:
        The aggregator.

    Raises:
        FadError: ``corrupted`` is no such number; when it is run, the cohort is too
            small, or the chain sums in a way of its own.

    Example:
        >>> import fad
        >>> @fad.program
        ... def step(updates, weights):
        ...     return krum(1).combine(updates, weights, fad.sum).value
        >>> updates = fad.AtClients(jnp.array([1.0, 2.0, 2.5, 4.0, 1e9]))
        >>> float(step(updates, fad.AtClients(jnp.ones(5))))
        2.0

    References:
        Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient
        Descent, NeurIPS 2017, section 4.
    """
    check_count("fad.aggregators.krum", "corrupted", corrupted, least=0)
    return _krum(f"fad.aggregators.krum(corrupted={corrupted})", corrupted, 1)


def multi_krum(corrupted: int, *, keep: int | None = None) -> Aggregator:
    """Average the ``keep`` updates that are closest to the others.

    The scores, the number of clients that it takes, what it shows, and what it needs
    at the server are those of ``krum``, which keeps one. The updates that are kept
    count all the same.

    Args:
        corrupted: The number of corrupted clients to survive, ``f``.
        keep: How many to average, at most ``n - f``; None keeps ``n - f`` of the ``n``
            clients that are there.

    Returns:
        The aggregator.

    Raises:
        FadError: As of ``krum``; or ``keep`` is not positive or, when it is run, above
            ``n - f``.

    Example:
        >>> import fad
        >>> @fad.program
        ... def step(updates, weights):
        ...     return multi_krum(1).combine(updates, weights, fad.sum).value
        >>> updates = fad.AtClients(jnp.array([1.0, 2.0, 3.0, 4.0, 1e9]))
        >>> float(step(updates, fad.AtClients(jnp.ones(5))))
        2.5

    References:
        Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient
        Descent, NeurIPS 2017, section 5.
    """
    check_count("fad.aggregators.multi_krum", "corrupted", corrupted, least=0)
    if keep is not None:
        check_count("fad.aggregators.multi_krum", "keep", keep)
    call = f"fad.aggregators.multi_krum(corrupted={corrupted}, keep={keep})"
    return _krum(call, corrupted, keep)


def _krum(call: str, corrupted: int, keep: int | None) -> Aggregator:
    least = 2 * corrupted + 3

    def combine(messages, weights, total):
        values, here = raw(call, messages, weights, total)
        n, present = here.shape[0], here.sum()
        if n < least:
            raise FadError(
                f"{call}: Krum n < 2f + 3: the cohort has n = {n} clients, and with "
                f"f = {corrupted} it takes {least}. Take larger cohorts, or fewer "
                "corrupted clients into account."
            )
        if keep is not None and keep > n - corrupted:
            raise FadError(
                f"{call}: expected keep of at most n - f = {n - corrupted} for a "
                f"cohort of n = {n} clients, got {keep}. More would take a corrupted "
                "one for sure."
            )
        scores = _scores(jax.lax.stop_gradient(values), here, present - corrupted - 2)
        rank = jnp.argsort(jnp.lexsort((scores, ~here)))  # who is not there, last
        most = present - corrupted
        chosen = rank < (most if keep is None else jnp.minimum(most, keep))
        enough = present >= least
        mean = jax.tree.map(lambda x: mean_of(chosen & enough, x), values)
        return Message(mean, {_TOO_FEW: 1 - enough.astype(jnp.float32)})

    return reporting(_TOO_FEW, combine=combine)


def _scores(values: PyTree, here: jax.Array, nearest: jax.Array) -> jax.Array:
    """Return the sum of squared distances to so many nearest others: ``[n]``."""
    n, dtype = here.shape[0], wide(values)

    def one(i):
        squares = jnp.zeros(n, dtype)
        for x in jax.tree.leaves(values):
            x = x.astype(dtype).reshape(n, -1)
            squares += jnp.square(x - x[i][None]).sum(axis=1)
        others = here & (jnp.arange(n) != i)
        squares = jnp.sort(jnp.where(others, squares, jnp.inf))
        return jnp.where(jnp.arange(n) < nearest, squares, 0).sum()

    return jax.lax.map(one, jnp.arange(n))  # one row of distances at a time
