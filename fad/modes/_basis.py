"""The standard basis of a pytree, and back."""

from typing import Any

import jax
import jax.numpy as jnp


def columns(rows: jax.Array, tree: Any) -> Any:
    """Cut ``[k, *out]`` into ``[*out, *s]`` per leaf, as JAX writes a Jacobian."""
    ndim = rows.ndim - 1
    return jax.tree.map(
        lambda c: jnp.moveaxis(c, range(-ndim, 0), range(ndim)) if ndim else c,
        split_rows(rows, tree),
    )


def is_real(x: Any) -> bool:
    """Say whether a leaf carries a derivative."""
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.inexact)


def basis(tree: Any) -> Any:
    """Return the standard basis of a pytree, ``[*s] -> [k, *s]`` with ``k`` its size.

    Example:
        >>> basis({"a": jnp.zeros(2), "b": jnp.zeros(())})["a"]
        Array([[1., 0.],
               [0., 1.],
               [0., 0.]], dtype=float32)
    """
    leaves, treedef = jax.tree.flatten(tree)
    total, start, rows = sum(jnp.size(x) for x in leaves), 0, []
    for x in leaves:
        # Made where it is used: a constant would be sent to the clients.
        eye = jnp.eye(total, jnp.size(x), -start, dtype=jnp.result_type(x))
        rows.append(eye.reshape(total, *jnp.shape(x)))
        start += jnp.size(x)
    return treedef.unflatten(rows)


def split_rows(rows: jax.Array, tree: Any) -> Any:
    """Undo ``basis``: cut axis 0 of ``[k, *t]`` into the leaves' ``[*s, *t]``."""
    leaves, treedef = jax.tree.flatten(tree)
    out, start = [], 0
    for x in leaves:
        stop = start + jnp.size(x)
        out.append(rows[start:stop].reshape(*jnp.shape(x), *rows.shape[1:]))
        start = stop
    return treedef.unflatten(out)
