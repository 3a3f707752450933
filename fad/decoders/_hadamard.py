"""A sketch by Hadamard's transform: a few rows of a random orthonormal matrix."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fad import _hadamard as transform
from fad.aggregators._vector import at_least_single
from fad.decoders._checks import check_seed, check_shape
from fad.decoders._sketch import Sketch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Orthogonal(Sketch):
    """The signs before either transform, ``int8[d]``, and the rows, ``int32[p]``."""

    first: jax.Array
    last: jax.Array
    places: jax.Array
    quick = True

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.places.size

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.first.size

    def apply(self, theta: jax.Array) -> jax.Array:
        x, width = at_least_single(theta), _width(self.size)
        x = x * self.first.astype(x.dtype)
        x = jnp.concatenate([transform.hadamard(x[:width]), x[width:]])
        if width < self.size:
            x = x * self.last.astype(x.dtype)
            x = jnp.concatenate([x[:-width], transform.hadamard(x[-width:])])
        return (math.sqrt(self.scale) * x[self.places]).astype(theta.dtype)

    def transpose(self, v: jax.Array) -> jax.Array:
        x, width = at_least_single(v), _width(self.size)
        zeros = jnp.zeros(self.size, x.dtype)
        x = zeros.at[self.places].set(math.sqrt(self.scale) * x, unique_indices=True)
        if width < self.size:
            x = jnp.concatenate([x[:-width], transform.hadamard(x[-width:])])
            x = x * self.last.astype(x.dtype)
        x = jnp.concatenate([transform.hadamard(x[:width]), x[width:]])
        return (x * self.first.astype(x.dtype)).astype(v.dtype)

    def columns(self, index: jax.Array) -> jax.Array:
        units = jax.nn.one_hot(index, self.size, dtype=jnp.float32)
        return jax.vmap(self.apply, out_axes=1)(units)

    def gram(self, v: jax.Array) -> jax.Array:
        return self.scale * v

    def largest(self) -> jax.Array:
        return jnp.asarray(self.scale, jnp.float32)

    @property
    def scale(self) -> float:
        """The eigenvalue of ``S S^T``."""
        return self.size / self.rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Hadamard(Sketch):
    """A seed, ``uint32[]``, and the sizes: drawn where it is used, not sent."""

    seed: jax.Array
    rows: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    quick = True

    def ready(self) -> Sketch:
        keys = jax.random.split(jax.random.key(self.seed, impl="threefry2x32"), 3)
        first = jax.random.rademacher(keys[0], (self.size,), jnp.int8)
        last = jax.random.rademacher(keys[1], (self.size,), jnp.int8)
        order = jax.random.uniform(keys[2], (self.size,), jnp.float32)
        return _Orthogonal(first, last, jax.lax.top_k(order, self.rows)[1])

    def apply(self, theta: jax.Array) -> jax.Array:
        return self.ready().apply(theta)

    def transpose(self, v: jax.Array) -> jax.Array:
        return self.ready().transpose(v)

    def columns(self, index: jax.Array) -> jax.Array:
        return self.ready().columns(index)

    def gram(self, v: jax.Array) -> jax.Array:
        return self.size / self.rows * v

    def largest(self) -> jax.Array:
        return jnp.asarray(self.size / self.rows, jnp.float32)


def hadamard(rows: int, size: int, seed: int | jax.Array) -> Sketch:
    """Make a sketch with ``S S^T = (d / p) I`` and products in ``O(d log d)``.

    p rows, drawn at random, of an orthonormal matrix times the root of d / p. The
    matrix is random signs and Hadamard's transform of the first ``2^k <= d``
    coordinates; where d is no power of two, once more of the last ``2^k``, so that it
    is orthonormal for every d. Its entries are few different numbers: below about
    ``2 log2 d`` rows some columns are the same up to their sign, of which a penalty
    cannot choose one.

    Args:
        rows: p, at most d.
        size: d.
        seed: An int or ``int[]``, which may be traced: a sketch per client.

    Returns:
        The sketch.

    Raises:
        FadError: If a size or the seed is none.

    Example:
        >>> sketch = hadamard(3, 6, 0)
        >>> sketch.apply(sketch.transpose(jnp.ones(3))).round(3).tolist()
        [2.0, 2.0, 2.0]

    References:
        Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", SIAM Journal on
        Computing 2009; Tropp, "Improved analysis of the subsampled randomized Hadamard
        transform", Advances in Adaptive Data Analysis 2011.
    """
    call = "fad.decoders.hadamard"
    rows, size = check_shape(call, rows, size)
    return _Hadamard(check_seed(call, seed), rows, size)


def _width(size: int) -> int:
    """Return the largest power of two that is at most ``size``."""
    return 1 << (size.bit_length() - 1)
