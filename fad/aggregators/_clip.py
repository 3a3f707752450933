"""Updates of bounded norm: scaled down to a bound, or left out above it."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.aggregators._aggregator import Aggregator, Message
from fad.aggregators._checks import check_number
from fad.aggregators._norm import divided, norm, numbers, wide
from fad.aggregators._reporting import reporting

PyTree = Any

_CLIPPED, _ZEROED = "clipped_fraction", "zeroed_fraction"


def clip(bound: Any) -> Aggregator:
    """Scale each client's update ``d`` to ``min(1, bound / |d|) d``, over all of it.

    The Euclidean norm of what comes out, computed exactly, is never above ``bound``:
    not by rounding, not where squares overflow. For that a little is given away: an
    update is scaled where its norm, plus what its rounding error may be (some 1e-6 of
    it in float32), is above the bound; and to so much below it, in bfloat16 0.4 %. What
    is not scaled stays as it is, bit for bit.

    The derivative is that of the formula, by the update and by ``bound``, almost
    everywhere. Shown after a round: ``clipped_fraction``, of the clients that count.

    Args:
        bound: Positive; may be a traced value.

    Returns:
        The aggregator.

    Raises:
        FadError: ``bound`` is no positive finite number.

    Example:
        >>> one = clip(1.0)
        >>> sent, _ = one.client((), (), (), jnp.array([3.0, 4.0]), None)
        >>> [round(float(x), 4) for x in sent.value], sent.value.dtype.name
        ([0.6, 0.8], 'float32')

    References:
        McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR
        2018.
    """
    check_number("fad.aggregators.clip(bound)", "bound", bound)

    def client(theta, state, memory, update, key):
        del theta, state, key
        value, above = clip_to(update, bound)
        return Message(value, {_CLIPPED: above.astype(jnp.float32)}), memory

    return reporting(_CLIPPED, client=client)


def zero_above(bound: Any, *, norm: Literal["l2", "linf"] = "l2") -> Aggregator:
    """Replace an update whose norm is above ``bound`` by zeros.

    The client counts all the same, with an update of zero. The largest magnitude
    (``linf``) is compared as it is, the Euclidean norm (``l2``) as computed, without
    overflow; what is not finite is above every bound. The derivative is 1 or 0 for an
    update that stays or goes, and 0 by ``bound``. Shown after a round:
    ``zeroed_fraction``, of the clients that count.

    Args:
        bound: Positive; may be a traced value.
        norm: Of the whole update, ``l2`` or ``linf``.

    Returns:
        The aggregator.

    Raises:
        FadError: ``bound`` is no positive finite number, or there is no such norm.

    Example:
        >>> one = zero_above(5.0)
        >>> for update in ([3.0, 4.0], [3.0, 5.0]):
        ...     sent, _ = one.client((), (), (), jnp.array(update), None)
        ...     print(sent.value.tolist(), float(sent.report["zeroed_fraction"]))
        [3.0, 4.0] 0.0
        [0.0, 0.0] 1.0
    """
    check_number("fad.aggregators.zero_above(bound)", "bound", bound)
    if norm not in ("l2", "linf"):
        raise FadError(
            f"fad.aggregators.zero_above(norm=...): expected 'l2' or 'linf', got "
            f"{norm!r}."
        )

    def client(theta, state, memory, update, key):
        del theta, state, key
        above = ~(_size(update, norm) <= _number(bound, wide(update)))  # also NaN
        value = jax.tree.map(lambda x: jnp.where(above, jnp.zeros_like(x), x), update)
        return Message(value, {_ZEROED: above.astype(jnp.float32)}), memory

    return reporting(_ZEROED, client=client)


def clip_to(update: PyTree, bound: Any) -> tuple[PyTree, jax.Array]:
    """Scale an update to ``bound`` as ``clip`` does; say also whether that was needed.

    Args:
        update: The update, float leaves.
        bound: Positive; may be traced, or broadcast from the server.

    Returns:
        What is like the update, and ``[]`` bool.
    """
    dtype, measured = wide(update), norm(update)
    own = [jnp.finfo(x.dtype) for x in jax.tree.leaves(update)]
    # What a number may lose where it is too small for its dtype, or is flushed to zero.
    least = max(float(f.smallest_subnormal) for f in own)
    lost = max(least, float(jnp.finfo(dtype).tiny)) * math.sqrt(numbers(update))
    limit = _number(bound, dtype) * (1 - measured.error) - lost
    above = measured.value > limit
    rounding = max(float(f.eps) for f in own) / 2
    factor = jnp.maximum(limit, 0) * (1 - rounding) / measured.relative

    def scaled(x):
        # First to at most 1, so that nothing overflows.
        y = divided(x.astype(dtype), measured.largest) * factor
        return jnp.where(above, y.astype(x.dtype), x)

    return jax.tree.map(scaled, update), above


def _size(update: PyTree, kind: str) -> jax.Array:
    measured = norm(update)
    return measured.largest if kind == "linf" else measured.value


def _number(bound: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(bound).astype(dtype)
