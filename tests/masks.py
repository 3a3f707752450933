"""Selections by masking in plain JAX: full arrays times 0/1, against which select,
deselect and coverage_mean are held.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fad

N = 4  # clients

# ------------------------------------------------------------------------------------
# keys
# ------------------------------------------------------------------------------------


def keys_of(size: int, k: int) -> jax.Array:
    """Return fixed keys ``[N, k]`` of ``size`` rows; the last client has none."""
    keys = np.full((N, k), -1)
    for client, count in enumerate([k, max(k - 1, 1), 1]):
        order = np.random.default_rng(size + client).permutation(size)
        keys[client, :count] = order[:count]
    keys[1] = keys[1, ::-1]  # what fills up may stand in front
    return jnp.asarray(keys)


def selection(tree: Any, *, fewer: int = 0) -> Any:
    """Return keys for server values: None for scalars, rows of vectors, blocks.

    Along each axis they are ``fewer`` than the server has.
    """

    def of_leaf(v):
        keys = [fad.AtClients(keys_of(s, s - fewer)) for s in v.shape]
        if len(keys) < 2:
            return keys[0] if keys else None
        return {0: keys[0], -1: keys[1]}

    return jax.tree.map(of_leaf, tree)


def larger(y: Any) -> Any:
    """Return types one larger along each axis than the slices ``[n, *s]`` of ``y``."""

    def of_leaf(v):
        return jax.ShapeDtypeStruct(tuple(s + 1 for s in v.shape[1:]), v.dtype)

    return jax.tree.map(of_leaf, y)


# ------------------------------------------------------------------------------------
# the oracles
# ------------------------------------------------------------------------------------


def take(tree: Any, *, fewer: int = 0) -> Any:
    """Return what ``fad.select`` sends by ``selection``, ``[n, *s]``."""

    def of_leaf(v):
        out = jnp.broadcast_to(v, (N, *v.shape))
        for axis, size in enumerate(v.shape):
            out = _times(out, _hot(size, size - fewer), axis)
        return out

    return jax.tree.map(of_leaf, tree)


def place(y: Any, like: Any) -> Any:
    """Return each client's slices of ``selection`` in zeros of the server's shape."""

    def of_leaf(v, full):
        for axis, size in enumerate(full.shape):
            v = _times(v, jnp.swapaxes(_hot(size, v.shape[axis + 1]), 1, 2), axis)
        return v

    return jax.tree.map(of_leaf, y, like)


def deselect(y: Any) -> Any:
    """Return the sum of the slices ``[n, *s]`` of what is ``larger``."""
    return jax.tree.map(lambda v: v.sum(0), place(y, larger(y)))


def coverage_mean(y: Any, x: Any, weights: Any = None) -> fad.Coverage:
    """Return the means of ``y`` by coordinate, ``x`` where no client has one."""
    weights = jnp.ones(N) if weights is None else weights

    def of_leaf(v, full):
        double = v.dtype == jnp.float64
        dtype = jnp.float64 if double else jnp.float32
        w = weights.reshape(-1, *[1] * (v.ndim - 1)).astype(dtype)
        mask = place(jnp.ones(v.shape, dtype), full)
        weight = (w * mask).sum(0)
        total = (w * mask * place(v, full).astype(dtype)).sum(0)
        mean = total / jnp.where(weight > 0, weight, jnp.ones_like(weight))
        inexact = jnp.issubdtype(full.dtype, jnp.inexact)
        out = full.dtype if inexact else mean.dtype
        return jnp.where(weight > 0, mean.astype(out), full.astype(out)), weight

    leaves, treedef = jax.tree.flatten(y)
    pairs = [of_leaf(*v) for v in zip(leaves, jax.tree.leaves(x), strict=True)]
    return fad.Coverage(
        treedef.unflatten([m for m, _ in pairs]),
        treedef.unflatten([w for _, w in pairs]),
    )


def _hot(size: int, k: int) -> jax.Array:
    """Return the masks ``[N, k, size]`` of the keys."""
    return keys_of(size, k)[..., None] == jnp.arange(size)[None, None]


def _times(v: jax.Array, hot: jax.Array, axis: int) -> jax.Array:
    """Contract an axis of each client's ``v`` with its masks, exactly."""
    wide = v.astype(jnp.int32) if v.dtype == bool else v

    def one(w, h):
        return jnp.moveaxis(jnp.tensordot(h, w, ((1,), (axis,))), 0, axis)

    return jax.vmap(one)(wide, hot.astype(wide.dtype)).astype(v.dtype)


# ------------------------------------------------------------------------------------
# a round on slices
# ------------------------------------------------------------------------------------

# Two rows of three for each of four clients: none has the row 2 alone, the last client
# fills up, and the row 0 is the first client's alone.
ROWS = np.array([[0, 1], [1, 2], [2, 1], [-1, -1]], np.int32)
DATA = np.linspace(0.2, 1.4, N, dtype=np.float32)


@fad.program
def slice_round(w, data, keys=ROWS):
    """Train slices of ``w: [3]`` at the clients and average them by coverage."""
    keys = keys if isinstance(keys, fad.AtClients) else fad.AtClients(keys)
    local = fad.map(lambda p, d: jnp.sin(p * d), fad.select(w, keys), data)
    return fad.coverage_mean(local, keys, w).mean


def plain_slice_round(w, data, keys=ROWS):
    """``slice_round`` by masks ``[n, 3]``."""
    rows = jnp.arange(3, dtype=keys.dtype)[None, None]
    mask = (keys[..., None] == rows).any(1).astype(w.dtype)
    local = mask * jnp.sin(w[None] * data[:, None])
    cover = mask.sum(0)
    return jnp.where(cover > 0, local.sum(0) / jnp.maximum(cover, 1), w)
