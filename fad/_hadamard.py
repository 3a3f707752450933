"""The fast Hadamard transform."""

import math

import jax
import jax.numpy as jnp

_BLOCK = 32  # a power of two


def hadamard(z: jax.Array) -> jax.Array:
    """Multiply by Hadamard's matrix over the root of its size, its own inverse.

    The matrix is the Kronecker product of smaller ones, applied one after the other.
    """
    size, width = z.size, 1
    while width < size:
        block = min(_BLOCK, size // width)
        # Made where it is used: a constant would be sent.
        row = jax.lax.broadcasted_iota(jnp.uint32, (block, block), 0)
        column = jax.lax.broadcasted_iota(jnp.uint32, (block, block), 1)
        odd = jax.lax.population_count(row & column) & 1
        signs = jnp.where(odd == 1, -1, 1)
        z = z.reshape(-1, block, width)
        z = jnp.einsum("ab,xby->xay", signs.astype(z.dtype), z, precision="highest")
        width *= block
    return z.reshape(-1) / math.sqrt(size)
