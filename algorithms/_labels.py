"""Clients that leave out the labels they do not have, of the last layer.

A client is sent the last layer's columns of its own labels, by keys that are -1 for the
others. Those are zero, and so are their logits, and their gradients, while it trains.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fad
from fad import submodels


def last_layer(units: submodels.Units, params: Any, y: Any) -> str:
    """Return the name of the last layer: what has a bias of no hidden units.

    A bias of one number, such as a layer's of one unit, is no last layer's.

    Args:
        units: The model's hidden units.
        params: The model's parameters.
        y: Some examples' labels, ``[rows]``.

    Raises:
        FadError: There is no such layer, or ``y`` is no class of its outputs each.
    """
    held = {place.leaf for group in units.groups for place in group.places}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    biases = [path for path, leaf in leaves if leaf.ndim == 1 and leaf.size > 1]
    free = [path for path in biases if jax.tree_util.keystr(path) not in held]
    if len(free) != 1 or len(free[0]) != 2:
        names = ", ".join(map(jax.tree_util.keystr, free)) or "none"
        raise fad.FadError(
            "labels: expected one bias without hidden units, that of the last layer; "
            f"found {names}. Set labels = false for this model."
        )
    head, bias = (part.key for part in free[0])
    classes = params[head][bias].size
    if y.ndim != 1 or y.dtype.kind not in "iu" or not (y < classes).all():
        raise fad.FadError(
            f"labels: expected one of {classes} classes for each example; got y of "
            f"{y.dtype}{list(y.shape)}. Set labels = false for this task."
        )
    return head


def with_labels(keys: Any, params: Any, head: str, batches: Any) -> Any:
    """Return one client's keys with those of its labels: the last axes of ``head``."""
    classes = params[head]["bias"].size
    y = jnp.where(batches.mask, batches.examples["y"], classes)
    there = jnp.zeros(classes, bool).at[y.reshape(-1)].set(True, mode="drop")
    own = jnp.where(there, jnp.arange(classes, dtype=jnp.int32), -1)
    layer = {
        name: {**(keys[head][name] or {}), leaf.ndim - 1: own}
        for name, leaf in params[head].items()
    }
    return {**keys, head: layer}


def known_labels(loss: Callable[..., Any], keys: Any, head: str) -> Callable[..., Any]:
    """Return a loss that sees zeros in the last layer for labels of the key -1."""

    def known(name: str, leaf: jax.Array) -> jax.Array:
        there = keys[head][name][leaf.ndim - 1] >= 0
        return leaf * there.astype(leaf.dtype).reshape(*[1] * (leaf.ndim - 1), -1)

    def of_known(params: Any, *examples: Any) -> jax.Array:
        layer = {name: known(name, leaf) for name, leaf in params[head].items()}
        return loss({**params, head: layer}, *examples)

    return of_known
