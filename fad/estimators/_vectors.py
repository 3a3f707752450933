"""Arithmetic of pytrees as vectors; scalars take each leaf's dtype."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def add(x: Any, y: Any, scale: Any = 1.0) -> Any:
    """Return ``x + scale y``."""
    return jax.tree.map(lambda a, b: a + times(scale, b), x, y)


def times(scale: Any, x: Any) -> Any:
    """Return ``scale x``."""
    return jax.tree.map(lambda a: jnp.asarray(scale, a.dtype) * a, x)


def dot(x: Any, y: Any) -> jax.Array:
    """Return the inner product, in the widest of the leaves' dtypes: ``-> []``."""
    products = jax.tree.leaves(jax.tree.map(jnp.vdot, x, y))
    wide = max((p.dtype for p in products), key=lambda dtype: jnp.finfo(dtype).bits)
    return functools.reduce(jnp.add, [p.astype(wide) for p in products])


def norm(x: Any) -> jax.Array:
    """Return the Euclidean norm: ``-> []``, zero with a zero derivative at zero."""
    square = dot(x, x)
    none = square == 0  # NaN stays NaN.
    root = jnp.sqrt(jnp.where(none, jnp.ones_like(square), square))
    return jnp.where(none, jnp.zeros_like(square), root)


def zeros(x: Any) -> Any:
    """Return zeros like x."""
    return jax.tree.map(jnp.zeros_like, x)
