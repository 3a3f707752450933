"""Means over the clients that hold a coordinate."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import PlacementError, describe
from fad.placement import AtClients
from fad.primitives._map import map
from fad.primitives._mean import weigh
from fad.primitives._operands import client_leaves
from fad.primitives._operands import refuse_keys as refuse_prng_keys
from fad.primitives._slices import deselect_leaves


class Coverage(NamedTuple):
    """What ``fad.coverage_mean`` gives.

    Attributes:
        mean: For each coordinate the mean over the clients that have it; what the
            server has where none does.
        weight: For each coordinate the sum of the weights of those clients.
    """

    mean: Any
    weight: Any


def coverage_mean(
    y: AtClients[Any],
    keys: Any,
    x: Any,
    *,
    weights: AtClients[Any] | None = None,
    public: bool = False,
    secure: bool = False,
) -> Coverage:
    """Average each coordinate over the clients whose keys name it.

    ``[n, k, *s] -> [K, *s]``, by two sums: of the clients' slices times their weights,
    and of the weights. A coordinate that no client of positive weight has stays what it
    is in ``x``. A client of weight zero counts for nothing, whatever its values.

    Args:
        y: A client value, slices of ``x``; ints and bools become floats.
        keys: As of ``fad.select``.
        x: A pytree of arrays at the server: its present values, or zeros where ``y``
            is what to add to them.
        weights: ``[n]``, at least 0; every client counts 1 without them.
        public: As of ``fad.select``.
        secure: Whether weights are added up slice by slice, so that the server sees
            sums alone. Otherwise each client sends its weight once and its keys say
            where it counts: ``fad.check`` wants ``allow="decode"`` for that. Without
            weights nothing more is sent: the server knows the keys.

    Returns:
        The means and the weights of all coordinates, in the structure of ``x``.

    Raises:
        PlacementError: As of ``fad.deselect``; or weights are not one number a client.
        FadError: As of ``fad.deselect``.

    Example:
        >>> import fad
        >>> @fad.program
        ... def average(y, keys):
        ...     return fad.coverage_mean(y, keys, x=jnp.array([7.0, 7.0, 7.0])).mean
        >>> y = fad.AtClients(jnp.array([[1.0, 2.0], [4.0, 8.0]]))
        >>> average(y, fad.AtClients(jnp.array([[0, 2], [2, -1]]))).tolist()
        [1.0, 7.0, 3.0]

    References:
        E. Diao et al., HeteroFL, ICLR 2021, equation 3; H. Zhou et al., Every Parameter
        Matters, NeurIPS 2023, algorithm 1.
    """
    call = "fad.coverage_mean(y, keys, x)"
    refuse_prng_keys(call, client_leaves(call, "y", y)[0])
    sent: tuple[Any, ...] = ()
    if weights is None:
        weighted, spread = map(_weighted, y)
    else:
        named, _ = client_leaves(call, "weights", weights)
        if len(named) != 1 or named[0][1].ndim != 1:
            came = ", ".join(describe(v) for _, v in named) or "no array"
            raise PlacementError(
                f"{call}: weights are {came}; expected one number per client, [n]. "
                "Compute one for each with fad.map."
            )
        sent = (jax.ShapeDtypeStruct((), named[0][1].dtype),)
        weighted, spread = map(_weighted, y, weights)
    # The weight travels with the first leaf, for all.
    slices = itertools.repeat(None)
    wires = slices if secure else itertools.chain([sent], itertools.repeat(()))
    total = deselect_leaves(call, weighted, keys, x, public, slices, "x")
    weight = deselect_leaves(call, spread, keys, x, public, wires, "x")
    if sent and not secure:  # whoever needs one leaf's weight needs what travelled
        weight = jax.lax.optimization_barrier(weight)
    return Coverage(jax.tree.map(_mean, total, weight, x), weight)


def _weighted(y: Any, weight: Any = None) -> tuple[Any, Any]:
    """Return a client's slices times its weight, and its weight in all of them."""

    def times(v):
        return weigh(v, jnp.ones((), v.dtype) if weight is None else weight)

    def spread(v):
        product, w = times(v)
        double = jnp.finfo(product.dtype).bits == 64  # else 32, to count beyond 256
        return jnp.full(v.shape, w, jnp.float64 if double else jnp.float32)

    return jax.tree.map(lambda v: times(v)[0], y), jax.tree.map(spread, y)


def _mean(total: jax.Array, weight: jax.Array, x: Any) -> jax.Array:
    covered, x = weight != 0, jnp.asarray(x)  # NaN, of keys out of range, counts
    with jax.numpy_dtype_promotion("standard"):  # sums of 16-bit floats
        mean = total / jnp.where(covered, weight, jnp.ones_like(weight))
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    dtype = x.dtype if inexact else mean.dtype
    return jnp.where(covered, mean.astype(dtype), x.astype(dtype))
