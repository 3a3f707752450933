"""Means over clients: not primitives, but sums divided at the server.

A mean is ``S(x) / n`` and a weighted mean ``S(w x) / S(w)``, two sums, so their
derivatives follow from those of ``fad_sum`` and ``fad_map``.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fad._errors import PlacementError, describe
from fad.placement import AtClients, ambient_clients
from fad.primitives._broadcast_sum import sum
from fad.primitives._map import map
from fad.primitives._operands import client_leaves, refuse_keys

T = TypeVar("T")


def mean(x: AtClients[T]) -> T:
    """Average a client value at the server, every client counting the same.

    ``x: [n, *s] -> [*s]``, ``S(x) / n``. Floats keep their dtype; bools and ints are
    turned into the default float at the clients, the same eagerly and under ``jit``.

    Args:
        x: A client value.

    Returns:
        The same structure at the server.

    Raises:
        PlacementError: As ``fad.sum``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> fad.program(fad.mean)(fad.AtClients(jnp.array([1, 2, 4, 5])))
        Array(3., dtype=float32)
    """
    n = ambient_clients("fad.mean(x)")
    named, _ = client_leaves("fad.mean(x)", "x", x)
    refuse_keys("fad.mean(x)", named)
    if any(not jnp.issubdtype(v.dtype, jnp.inexact) for _, v in named):
        x = map(lambda tree: jax.tree.map(_as_float, tree), x)
    return jax.tree.map(lambda s: s / n, sum(x))


def weighted_mean(x: AtClients[T], weights: AtClients[Any]) -> T:
    """Average a client value with one weight per client.

    ``x: [n, *s], weights: [n] -> [*s]``, ``S(w x) / S(w)`` by two sums. The derivatives
    are, with ``m`` the mean, ``W = S(w)`` and ``c`` the cotangent, ``w_i c / W`` for
    ``x_i`` and ``<x_i - m, c> / W`` for ``w_i``.

    Where the weights sum to zero the mean is zero, with a finite derivative, so a round
    in which nobody took part leaves a model as it was. A client of weight zero whose
    value is not finite (an empty client's 0/0) counts for nothing. Products and sums
    run in the wider of the two dtypes, and floats come back in their own.

    Args:
        x: A client value.
        weights: One scalar per client: counts, or any real weights.

    Returns:
        The structure of ``x`` at the server; ints and bools become floats.

    Raises:
        PlacementError: As ``fad.sum``, or if ``weights`` is not one scalar per client.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> x = fad.AtClients(jnp.array([1.0, 4.0]))
        >>> fad.program(fad.weighted_mean)(x, fad.AtClients(jnp.array([2, 1])))
        Array(2., dtype=float32)
    """
    call = "fad.weighted_mean(x, weights)"
    named, _ = client_leaves(call, "x", x)
    refuse_keys(call, named)
    weight, _ = client_leaves(call, "weights", weights)
    if len(weight) != 1 or weight[0][1].ndim != 1:
        came = ", ".join(f"{path}: {describe(v)}" for path, v in weight) or "no array"
        raise PlacementError(
            f"{call}: expected weights with one scalar per client, [n]; got {came}. "
            "Compute one weight per client with fad.map."
        )
    dtypes = [_as_float(v).dtype for _, v in named]
    total, weight_sum = sum(map(weigh, x, weights))
    safe = jnp.where(weight_sum == 0, jnp.ones_like(weight_sum), weight_sum)
    leaves, treedef = jax.tree.flatten(total)
    means = [
        (s / safe.astype(s.dtype)).astype(d)
        for s, d in zip(leaves, dtypes, strict=True)
    ]
    return treedef.unflatten(means)


def weigh(x: Any, weights: Any) -> tuple[Any, jax.Array]:
    """Return one client's value times its weight, and the weight, as floats."""
    (w,) = jax.tree.leaves(weights)
    w = _as_float(w)

    def times(v):
        v = _as_float(v)
        with jax.numpy_dtype_promotion("standard"):  # the casts below are explicit
            wide = jnp.promote_types(v.dtype, w.dtype)
        v, scale = v.astype(wide), w.astype(wide)
        # The derivative by a weight of zero is v, so only what is not finite goes.
        v = jnp.where((scale == 0) & ~jnp.isfinite(v), jnp.zeros_like(v), v)
        return scale * v

    return jax.tree.map(times, x), w


def _as_float(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return x.astype(jnp.result_type(float))
