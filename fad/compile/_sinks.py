"""What a sweep gives: sums over clients, slices added where they belong, all rows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad.primitives._operands import accumulator
from fad.primitives._rows import add_slices, no_slices, placed


class Sink:
    """What becomes of some client values in a sweep; one of the classes below.

    A chunk's ``part`` is added to the totals so far, and what is left of them after the
    last chunk is the ``result``. Totals are arrays, or a tuple of them, of which those
    of several devices or passes can be added up.

    Attributes:
        values: The client values.
        aval: Type of the result.
        rows: Whether it has all clients' rows; else it is a total.
        pulled: Whether a chunk's sum may be pulled through its work.
    """

    rows = False
    pulled = False

    def __init__(self, values: Sequence[Any], aval: Any):
        self.values, self.aval = list(values), aval

    def zeros(self) -> Any:
        """Return the totals of no client."""
        raise NotImplementedError

    def part(self, values: Sequence[jax.Array], counting: Any) -> Any:
        """Return what a chunk adds, of ``[c, *s]`` values and which clients count."""
        raise NotImplementedError

    def add(self, totals: Any, part: Any) -> Any:
        """Return the totals with a chunk's part."""
        raise NotImplementedError

    def result(self, totals: Any) -> jax.Array:
        """Return the result in its own dtype."""
        raise NotImplementedError

    def key(self) -> tuple:
        """Return what tells sinks of the same values apart."""
        return (type(self).__name__,)


class Rows(Sink):
    """All clients' values, ``[n, *s]``."""

    rows = True

    def part(self, values: Sequence[jax.Array], counting: Any) -> jax.Array:
        """Return the chunk's rows."""
        del counting
        return values[0]


class Sum(Sink):
    """The sum of a client value, 16-bit floats in 32 bits."""

    def __init__(self, values: Sequence[Any], aval: Any, dtype: Any):
        super().__init__(values, aval)
        # Short floats and whole numbers are widened for each client first.
        self.pulled = accumulator(aval.dtype) == dtype

    def zeros(self) -> jax.Array:
        """Return zeros ``[*s]``."""
        return jnp.zeros(self.aval.shape, accumulator(self.aval.dtype))

    def part(self, values: Sequence[jax.Array], counting: Any) -> jax.Array:
        """Return the chunk's sum."""
        return total(values[0], self.aval.dtype, counting)

    def add(self, totals: jax.Array, part: jax.Array) -> jax.Array:
        """Return the sum with a chunk's."""
        return totals + part

    def result(self, totals: jax.Array) -> jax.Array:
        """Return the sum in its own dtype."""
        return totals.astype(self.aval.dtype)


class Placed(Sink):
    """The sum of the clients' slices, each added where its keys say.

    The slices go straight into the totals, so that there is one array of the size of
    the result and none per client.
    """

    def __init__(self, values: Sequence[Any], aval: Any, axes: tuple[int, ...]):
        super().__init__(values, aval)
        self.axes = axes

    def zeros(self) -> Any:
        """Return the sum of no slices."""
        return no_slices(self.aval.shape, self.aval.dtype, self.axes)

    def part(self, values: Sequence[jax.Array], counting: Any) -> Any:
        """Return the chunk's slices with their keys, and which clients count."""
        return values, counting

    def add(self, totals: Any, part: Any) -> Any:
        """Return the totals with a chunk's slices."""
        values, counting = part
        return add_slices(totals, *values, axes=self.axes, counting=counting)

    def result(self, totals: Any) -> jax.Array:
        """Return the sum in its own dtype and order of axes."""
        return placed(totals, self.aval.dtype, self.axes)

    def key(self) -> tuple:
        """Return the axes and the shape, which the slices do not tell."""
        return (*super().key(), self.axes, self.aval.shape)


def total(values: jax.Array, dtype: Any, counting: jax.Array | None) -> jax.Array:
    """Add the clients of a chunk up, those that count: ``[chunk, *s] -> [*s]``."""
    if counting is not None:
        mask = counting.reshape(-1, *[1] * (values.ndim - 1))
        values = jnp.where(mask, values, jnp.zeros_like(values))
    wide = values.astype(accumulator(dtype))
    return wide[0] if wide.shape[0] == 1 else wide.sum(0, dtype=wide.dtype)
