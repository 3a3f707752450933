"""Clients that leave out the labels they do not have, of the last layer.

A client's loss sees zeros in the columns of these, so that their logits and gradients
are zero too. With slices a client is sent the columns of its own labels alone, by keys
that are -1 for the others.
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
    parts = [getattr(part, "key", None) for part in free[0]] if len(free) == 1 else []
    if len(parts) != 2 or parts[0] is None or parts[1] != "bias":
        names = ", ".join(map(jax.tree_util.keystr, free)) or "none"
        raise fad.FadError(
            "labels: expected one bias without hidden units, that of the last layer, "
            f'as params[layer]["bias"]; found {names}. Set labels = false for this '
            "model."
        )
    head = parts[0]
    classes = params[head]["bias"].size
    if y.ndim != 1 or y.dtype.kind not in "iu" or not (y < classes).all():
        raise fad.FadError(
            f"labels: expected one of {classes} classes for each example; got y of "
            f"{y.dtype}{list(y.shape)}. Set labels = false for this task."
        )
    return head


def own_labels(batches: fad.local.Batches, classes: int) -> jax.Array:
    """Return which labels a client has among its real examples: ``[classes]`` bool."""
    y = jnp.where(batches.mask, batches.examples["y"], classes)
    return jnp.zeros(classes, bool).at[y.reshape(-1)].set(True, mode="drop")


def with_labels(keys: Any, params: Any, head: str, batches: Any) -> Any:
    """Return one client's keys with those of its labels: the last axes of ``head``."""
    classes = params[head]["bias"].size
    labels = jnp.arange(classes, dtype=jnp.int32)
    own = jnp.where(own_labels(batches, classes), labels, -1)
    layer = {
        name: {**(keys[head][name] or {}), leaf.ndim - 1: own}
        for name, leaf in params[head].items()
    }
    return {**keys, head: layer}


def known_labels(
    loss: Callable[..., Any], own: jax.Array, head: str
) -> Callable[..., Any]:
    """Return a loss that sees zeros in the last layer for labels not in ``own``."""

    def of_known(params: Any, *examples: Any) -> jax.Array:
        return loss(only_labels(params, own, head), *examples)

    return of_known


def only_labels(params: Any, own: jax.Array, head: str) -> Any:
    """Return the params with zeros in the last layer for labels not in ``own``."""

    def known(leaf: jax.Array) -> jax.Array:
        there = own.reshape(*[1] * (leaf.ndim - 1), -1)
        return jnp.where(there, leaf, jnp.zeros_like(leaf))

    return {**params, head: jax.tree.map(known, params[head])}
