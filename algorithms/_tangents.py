"""Tangents of a server's state that are carried from round to round.

A state may hold counters and keys beside real numbers: these have no tangent, kept as
None and given to ``jax.jvp`` as its trivial one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def fade(tree: Any, memory: float) -> Any:
    """Return the values of ``tree`` with their tangents times ``memory``."""

    def one(x):
        still = jax.lax.stop_gradient(x)
        if memory == 0 or not _is_real(x):
            return still
        return still + memory * (x - still)

    return tree if memory == 1 else jax.tree.map(one, tree)


def still(tree: Any, theta: Any) -> Any:
    """Return a zero tangent by each number of theta, stacked in front of each leaf."""
    count = ravel_pytree(theta)[0].size

    def one(x):
        return jnp.zeros((count, *jnp.shape(x)), x.dtype) if _is_real(x) else None

    return jax.tree.map(one, tree)


def push(
    round: Callable[..., Any], model: Any, theta: Any, tangent: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """Push the tangents by each number of theta through a round.

    Args:
        round: ``round(model, theta) -> (loss, model), aux``.
        model: The state before.
        theta: What is learned.
        tangent: The state's tangents, as ``still`` begins them.

    Returns:
        Loss, state and aux of the round; the loss's gradient by theta; the tangents of
        the new state, with zeros for what is not finite.
    """
    flat, unravel = ravel_pytree(theta)

    def along(before, direction):
        primals, tangents = (model, theta), (_whole(model, before), direction)
        (loss, new), (slope, after), aux = jax.jvp(
            round, primals, tangents, has_aux=True
        )
        return loss, new, aux, slope, _kept(model, after)

    basis = jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
    axes = (None, None, None, 0, 0)
    *values, slopes, after = jax.vmap(along, out_axes=axes)(tangent, basis)
    return *values, unravel(slopes.astype(flat.dtype)), finite(after)


def _kept(tree: Any, tangent: Any) -> Any:
    """Drop the trivial tangents, as a state that is stored must."""
    return jax.tree.map(lambda x, t: t if _is_real(x) else None, tree, tangent)


def _whole(tree: Any, tangent: Any) -> Any:
    """Fill in the trivial tangents, as ``jax.jvp`` wants them."""

    def one(x, t):
        return np.zeros(jnp.shape(x), jax.dtypes.float0) if t is None else t

    return jax.tree.map(one, tree, tangent, is_leaf=lambda x: x is None)


def finite(tangent: Any) -> Any:
    """Return the derivatives with zeros for those that are not finite."""
    return jax.tree.map(lambda t: jnp.nan_to_num(t, posinf=0, neginf=0), tangent)


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
