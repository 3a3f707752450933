"""The norm of an update: without overflow, and with a bound on its rounding error."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any

_BLOCK = 32  # so many numbers are summed at once


class Norm(NamedTuple):
    """The Euclidean norm of a tree, ``largest * relative``.

    Attributes:
        largest: ``[]``, the largest magnitude; its derivative is left out.
        relative: ``[]``, the norm of the tree divided by ``largest``, at least 1; 1 for
            a tree of zeros.
        error: How far off ``value`` and a few products with it may be, relatively.
    """

    largest: jax.Array
    relative: jax.Array
    error: float

    @property
    def value(self) -> jax.Array:
        """``[]``, the norm; infinite where it overflows."""
        return self.largest * self.relative


def norm(tree: PyTree) -> Norm:
    """Measure a tree in its widest dtype, at least float32.

    The numbers are divided by the largest before they are squared, so that nothing
    overflows and what underflows does not matter. They are summed in blocks, and the
    blocks' sums again, so that the error hardly grows with their number. The derivative
    of the norm is ``x / |x|``, and zero where ``x`` is.
    """
    leaves = [x.astype(wide(tree)) for x in jax.tree.leaves(tree)]
    each = jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in leaves])
    largest = jax.lax.stop_gradient(each.max())
    squares = [jnp.square(divided(x, largest)).reshape(-1) for x in leaves]
    sums = [_sum_in_blocks(x) for x in squares]
    square, last = _sum_in_blocks(jnp.stack([s for s, _ in sums]))
    # Half an epsilon per addition, halved by the root; the rest is a few operations.
    additions = max(a for _, a in sums) + last
    error = (additions / 4 + 8) * float(jnp.finfo(largest.dtype).eps)
    none = largest == 0
    relative = jnp.sqrt(jnp.where(none, jnp.ones_like(square), square))
    return Norm(largest, relative, error)


def divided(x: jax.Array, largest: jax.Array) -> jax.Array:
    """Return ``x / largest``, zero where ``largest`` is, for any magnitude of it.

    XLA may multiply by the reciprocal, which is flushed to zero above 2^126.
    """
    shift = jnp.where(largest > 1, 1 / 16, 16).astype(x.dtype)
    safe = jnp.where(largest == 0, jnp.ones_like(largest), largest * shift)
    return x * shift / safe


def wide(tree: PyTree) -> Any:
    """Return the widest dtype of a tree's leaves, at least float32."""
    dtype = jnp.dtype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        for x in jax.tree.leaves(tree):
            dtype = jnp.promote_types(dtype, x.dtype)
    return dtype


def numbers(tree: PyTree) -> int:
    """Return how many numbers there are in a tree."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _sum_in_blocks(x: jax.Array) -> tuple[jax.Array, int]:
    """Return the sum of ``[d]``, and how many additions one number goes through."""
    additions = 0
    while x.size > 1:
        block = min(x.size, _BLOCK)
        x = jnp.pad(x, (0, -x.size % block)).reshape(-1, block).sum(axis=1)
        additions += block - 1
    return x.sum(), additions
