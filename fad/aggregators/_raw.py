"""Raw updates at the server, for the aggregators that no sum can express."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.aggregators._norm import wide
from fad.placement import AtClients, gathered
from fad.primitives import sum

PyTree = Any


def raw(
    call: str, messages: AtClients[PyTree], weights: AtClients[Any], total: Callable
) -> tuple[PyTree, jax.Array]:
    """Gather each client's message, and who is there: ``[n, *s], [n] bool``.

    Raises:
        FadError: ``total`` is not the plain sum: what it protects or encodes would
            travel in the clear.
    """
    if total is not sum:
        own = getattr(total, "func", total)  # of a partial
        name = f"{own.__module__}.{getattr(own, '__qualname__', type(own).__name__)}"
        raise FadError(
            f"{call}: it needs each client's raw update, and the chain sums in a way "
            f"of its own, total={name}, of which the server gets sums alone. Leave one "
            "of the two out; fad.aggregators.geometric_median() is robust by sums."
        )
    values, (weight,) = gathered(messages), jax.tree.leaves(gathered(weights))
    return values, weight > 0


def along(x: jax.Array, like: jax.Array) -> jax.Array:
    """Give ``[n]`` the rank of ``[n, *s]``."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


def mean_of(chosen: jax.Array, x: jax.Array) -> jax.Array:
    """Average the rows that are chosen: ``[n], [n, *s] -> [*s]``.

    Zero if none is. At least in float32; rows that are not chosen may hold anything.
    """
    dtype = wide(x)
    total = jnp.where(along(chosen, x), x.astype(dtype), 0).sum(axis=0)
    count = jnp.maximum(chosen.sum(), 1).astype(dtype)
    return (total / count).astype(x.dtype)
