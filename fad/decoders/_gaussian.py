"""A Gaussian sketch that is made from its seed, block by block, where it is used.

Column j of S follows from the seed and j alone: the words of Threefry-2x32 at the
counters ``(j, 0), (j, 1), ...``, cut into halves of 16 bits, of which each picks one of
65,536 quantiles of the normal law.

References:
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Threefry).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad.aggregators._vector import at_least_single
from fad.decoders._checks import check_seed, check_shape
from fad.decoders._sketch import Sketch

_BLOCK = 2**20  # entries that are made at a time
_LEVELS = 2**16
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian(Sketch):
    """A seed, ``uint32[]``, and the sizes; ``block`` columns are made at a time."""

    seed: jax.Array
    rows: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})

    def apply(self, theta: jax.Array) -> jax.Array:
        """Return ``S theta``."""
        x = at_least_single(theta)
        parts = jnp.pad(x, (0, -self.size % self.block)).reshape(-1, self.block)

        def step(total: jax.Array, part: jax.Array, made: jax.Array) -> Any:
            return total + _product(part, made), None

        return self._over_blocks(step, parts, x.dtype)[0].astype(theta.dtype)

    def transpose(self, v: jax.Array) -> jax.Array:
        """Return ``S^T v``."""
        x = at_least_single(v)

        def step(total: jax.Array, _: None, made: jax.Array) -> Any:
            return total, _product(made, x)

        parts = self._over_blocks(step, None, x.dtype)[1]
        return parts.reshape(-1)[: self.size].astype(v.dtype)

    def columns(self, index: jax.Array) -> jax.Array:
        """Return some columns of S."""
        return _columns(self.seed, index, _quantiles(self.rows), self.rows).T

    def gram(self, v: jax.Array) -> jax.Array:
        """Return ``S S^T v``, at the price of one product."""
        x = at_least_single(v)
        there = jnp.arange(self.size + -self.size % self.block) < self.size

        def step(total: jax.Array, there: jax.Array, made: jax.Array) -> Any:
            part = jnp.where(there, _product(made, x), 0)
            return total + _product(part, made), None

        parts = there.reshape(-1, self.block)
        return self._over_blocks(step, parts, x.dtype)[0].astype(v.dtype)

    def _over_blocks(self, step: Callable, parts: Any, dtype: Any) -> Any:
        """Scan over blocks of columns, ``[block, p]`` each, from a total of ``[p]``.

        They are made anew where a derivative needs them.
        """
        quantiles = _quantiles(self.rows)

        def one(total: jax.Array, at: tuple[jax.Array, Any]) -> Any:
            index = at[0] + jnp.arange(self.block, dtype=jnp.uint32)
            made = _columns(self.seed, index, quantiles, self.rows).astype(dtype)
            return step(total, at[1], made)

        starts = jnp.arange(0, self.size, self.block, dtype=jnp.uint32)
        again = jax.checkpoint(one, prevent_cse=False)
        return jax.lax.scan(again, jnp.zeros(self.rows, dtype), (starts, parts))


def gaussian(rows: int, size: int, seed: int | jax.Array) -> Sketch:
    """Make a sketch of independent entries ``N(0, 1 / p)``, never stored as a whole.

    A product makes S anew, a million entries at a time, whatever p and d are; the same
    S in every dtype, on every device (up to a rounding of the quantiles) and for every
    division into blocks. The law is the normal one to 16 bits.

    Args:
        rows: p, at most d.
        size: d.
        seed: An int or ``int[]``, which may be traced: a sketch per client.

    Returns:
        The sketch.

    Raises:
        FadError: If a size or the seed is none.

    Example:
        >>> sketch = gaussian(10, 1000, 0)
        >>> round(float(jnp.linalg.norm(sketch.columns(jnp.arange(1000)))) ** 2, -2)
        1000.0
    """
    call = "fad.decoders.gaussian"
    rows, size = check_shape(call, rows, size)
    block = min(size, max(1, _BLOCK // rows))
    return Gaussian(check_seed(call, seed), rows, size, block)


def _quantiles(rows: int) -> jax.Array:
    """Return the quantiles, over the root of p: made here, a constant would be sent."""
    places = jnp.arange(_LEVELS, dtype=jnp.float32) + 0.5
    scale = math.sqrt(2 / rows)
    return scale * jax.lax.erf_inv(places * (2 / _LEVELS) - 1)


def _columns(
    seed: jax.Array, index: jax.Array, quantiles: jax.Array, rows: int
) -> jax.Array:
    """Return columns as rows: ``int[k] -> float32[k, p]``."""
    counters = jnp.arange(-(-rows // 4), dtype=jnp.uint32)
    shape = index.shape + counters.shape
    words = _threefry(
        seed,
        jnp.broadcast_to(index.astype(jnp.uint32)[:, None], shape),
        jnp.broadcast_to(counters[None], shape),
    )
    halves = [half for word in words for half in (word >> 16, word & (_LEVELS - 1))]
    level = jnp.concatenate(halves, axis=1)[:, :rows]
    return quantiles.at[level.astype(jnp.int32)].get(mode="promise_in_bounds")


def _threefry(seed: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Return two words of Threefry-2x32, 20 rounds, of the key ``(0, seed)``."""
    keys = (jnp.uint32(0), seed, seed ^ jnp.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for by in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << by) | (y >> (32 - by)))
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
