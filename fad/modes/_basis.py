"""The standard basis of a pytree, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_real(x: Any) -> bool:
    """Say whether a leaf carries a derivative."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def basis(tree: Any) -> Any:
    """Return the standard basis of a pytree, ``[*s] -> [k, *s]`` with ``k`` its size.

    Example:
        >>> basis({"a": jnp.zeros(2), "b": jnp.zeros(())})["a"]
        Array([[1., 0.],
               [0., 1.],
               [0., 0.]], dtype=float32)
    """
    leaves, treedef = jax.tree.flatten(tree)
    sizes = [int(np.prod(jnp.shape(x))) for x in leaves]
    starts = np.cumsum([0, *sizes])
    rows = []
    for x, size, start in zip(leaves, sizes, starts[:-1], strict=True):
        eye = np.zeros((starts[-1], size), np.float32)
        eye[start : start + size] = np.eye(size)
        shape = (starts[-1], *jnp.shape(x))
        rows.append(jnp.asarray(eye.reshape(shape), jnp.result_type(x)))
    return treedef.unflatten(rows)


def split_rows(rows: jax.Array, tree: Any) -> Any:
    """Undo ``basis``: cut axis 0 of ``[k, *t]`` into the leaves' ``[*s, *t]``."""
    leaves, treedef = jax.tree.flatten(tree)
    out, start = [], 0
    for x in leaves:
        stop = start + int(np.prod(jnp.shape(x)))
        out.append(rows[start:stop].reshape(*jnp.shape(x), *rows.shape[1:]))
        start = stop
    return treedef.unflatten(out)
