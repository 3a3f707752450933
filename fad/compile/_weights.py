"""What the summands of a sum over clients are multiplied by."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(eq=False)
class Weights:
    """What a summand is multiplied by: per-client numbers, all optional.

    Attributes:
        scale: ``[c]`` factors.
        mask: ``[c]`` truth values: others count for nothing.
    """

    scale: Any = None
    mask: Any = None

    def times(self, scale: Any) -> "Weights":
        """Multiply by a number per client."""
        both = scale if self.scale is None else self.scale * scale
        return replace(self, scale=both)

    def where(self, mask: Any) -> "Weights":
        """Let only these clients count."""
        return replace(self, mask=mask if self.mask is None else self.mask & mask)

    def apply(self, x: jax.Array, axis: int, *, scale: bool = True) -> jax.Array:
        """Weigh an array that has the clients at ``axis``."""
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        if scale and self.scale is not None:
            x = x * self.scale.reshape(shape).astype(x.dtype)
        if self.mask is not None:
            x = jnp.where(self.mask.reshape(shape), x, jnp.zeros_like(x))
        return x

    def repeated(self, x: jax.Array, count: int) -> jax.Array:
        """Return the weighted sum of ``count`` times the same value."""
        ones = self.apply(jnp.ones(count, x.dtype), 0)
        return self.of_some(ones.sum(dtype=x.dtype) * x)

    def of_some(self, total: jax.Array) -> jax.Array:
        """Return a sum that is zero, not 0 times infinity, where no client counts."""
        if self.mask is None:
            return total
        return jnp.where(self.mask.any(), total, jnp.zeros_like(total))
