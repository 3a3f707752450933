"""Slices that keys name: taken out of arrays, put into zeros, added up in place."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad.primitives._operands import accumulator, sum_dtype


def take(x: jax.Array, *keys: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Return one client's slice: zero for the key -1, NaN for one out of range."""
    count = len(keys)
    rows = jnp.moveaxis(x, axes, range(count))
    index, there, none = [], jnp.ones((), bool), jnp.zeros((), bool)
    for a, (key, size) in enumerate(zip(keys, rows.shape, strict=False)):
        key = _along(_signed(key), a, count)
        inside = (key >= 0) & (key < size)
        index.append(jnp.where(inside, key, 0))
        there, none = there & inside, none | (key == -1)
    rows = rows[tuple(index)]
    # Of blocks, a row of the key -1 is zero whatever the others name.
    there, none = (_like_rows(mask, rows) for mask in (there, none))
    rows = jnp.where(there, rows, jnp.where(none, jnp.zeros_like(rows), _wrong(rows)))
    return jnp.moveaxis(rows, range(count), axes)


def put(
    y: jax.Array, *keys: jax.Array, shape: Sequence[int], axes: Sequence[int]
) -> jax.Array:
    """Return one client's slice in zeros of ``shape``, the transpose of ``take``."""
    clients = [k[None] for k in keys]
    return put_all(y[None], *clients, shape=shape, axes=axes).astype(y.dtype)


def put_all(
    y: jax.Array, *keys: jax.Array, shape: Sequence[int], axes: Sequence[int]
) -> jax.Array:
    """Return the sum of all clients' slices in place, of 16-bit floats in 32 bits."""
    dtype = sum_dtype(y.dtype)
    totals = add_slices(no_slices(shape, dtype, axes), y, *keys, axes=axes)
    return placed(totals, dtype, axes)


# The sum of slices so far is held with the axes that have keys in front, and with the
# number of keys out of range: clients are added to it without a copy.


def no_slices(shape: Sequence[int], dtype: Any, axes: Sequence[int]) -> Any:
    """Return the sum of no client's slices."""
    full = [shape[a] for a in axes] + [s for a, s in enumerate(shape) if a not in axes]
    return jnp.zeros(full, accumulator(dtype)), jnp.zeros((), jnp.int32)


def add_slices(
    totals: Any,
    y: jax.Array,
    *keys: jax.Array,
    axes: Sequence[int],
    counting: jax.Array | None = None,
) -> Any:
    """Add slices ``[c, k, *s]`` where keys ``[c, k]`` say, of clients that count."""
    (out, wrong), count = totals, len(keys)
    rows = jnp.moveaxis(y, [a + 1 for a in axes], range(1, count + 1))
    index = []
    for a, (key, size) in enumerate(zip(keys, out.shape, strict=False)):
        key = _signed(key)
        if counting is not None:
            key = jnp.where(counting[:, None], key, -1)
        own = jnp.where((key >= 0) & (key < size), key, size)  # dropped beyond the end
        index.append(jax.vmap(lambda k, a=a: _along(k, a, count))(own))
        wrong = wrong + ((key < -1) | (key >= size)).sum(dtype=jnp.int32)
    return out.at[tuple(index)].add(rows.astype(out.dtype), mode="drop"), wrong


def placed(totals: Any, dtype: Any, axes: Sequence[int]) -> jax.Array:
    """Return the sum ``[*shape]`` in its dtype; NaN if a key was out of range."""
    out, wrong = totals
    out = jnp.where(wrong > 0, _wrong(out), out)
    return jnp.moveaxis(out, range(len(axes)), axes).astype(dtype)


def _signed(key: jax.Array) -> jax.Array:
    """Return keys of any ints so that -1 and any size compare with them."""
    if key.dtype in (jnp.uint32, jnp.uint64):
        key = jnp.minimum(key, jnp.iinfo(jnp.int32).max)  # out of range stays so
    return key if key.dtype == jnp.int64 else key.astype(jnp.int32)


def _along(key: jax.Array, axis: int, count: int) -> jax.Array:
    """Return ``key: [k]`` along one of ``count`` axes, for an open grid."""
    return key.reshape([-1 if a == axis else 1 for a in range(count)])


def _like_rows(mask: jax.Array, rows: jax.Array) -> jax.Array:
    return mask.reshape(*mask.shape, *[1] * (rows.ndim - mask.ndim))


def _wrong(x: jax.Array) -> jax.Array:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.asarray(jnp.nan if inexact else 0, x.dtype)
