"""Masks over a model's weights, as one vector: which of each layer are kept.

The weights are the kernels, of matrices and of convolutions: leaves of two axes or
more. The rest, biases and norms, is never masked.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import fad
from fad.submodels import kept

Layers = Literal["uniform", "erk"]


def _is_kernel(leaf: Any) -> bool:
    return leaf.ndim > 1


def split(params: Any) -> tuple[jax.Array, list[jax.Array]]:
    """Return the weights as a vector ``[n]``, and the rest."""
    leaves = jax.tree.leaves(params)
    kernels = [leaf.reshape(-1) for leaf in leaves if _is_kernel(leaf)]
    return jnp.concatenate(kernels), [leaf for leaf in leaves if not _is_kernel(leaf)]


def join(like: Any, vector: jax.Array, rest: Sequence[jax.Array]) -> Any:
    """Return the params of a vector and a rest, in the shapes of ``like``."""
    leaves, tree = jax.tree.flatten(like)
    parts = iter(jnp.split(vector, np.cumsum(sizes(like))[:-1]))
    others = iter(rest)
    return tree.unflatten(
        next(parts).reshape(leaf.shape) if _is_kernel(leaf) else next(others)
        for leaf in leaves
    )


def sizes(params: Any) -> list[int]:
    """Return the number of weights of each layer."""
    found = [leaf.size for leaf in jax.tree.leaves(params) if _is_kernel(leaf)]
    if not found:
        raise fad.FadError(
            "sparse training: the params have no leaf of two axes or more, so no "
            "weights that could be left out. Choose another model, or fedavg."
        )
    return found


def only(params: Any, mask: jax.Array) -> Any:
    """Return the params with zeros for the weights that are not in the mask."""
    vector, rest = split(params)
    return join(params, jnp.where(mask, vector, jnp.zeros_like(vector)), rest)


def top(scores: jax.Array, sizes: Sequence[int], counts: Any) -> jax.Array:
    """Return the ``counts[l]`` largest of each layer, ``[n] -> [n]`` bool.

    Of equal scores those that come first; NaN is the largest, so that it is not lost.
    """
    scores, found = jax.lax.stop_gradient(scores), []
    for part, count in zip(jnp.split(scores, np.cumsum(sizes)[:-1]), counts):  # noqa: B905
        count = jnp.asarray(count, jnp.int32)
        part = jnp.where(jnp.isnan(part), jnp.inf, part)
        least = jnp.sort(part)[part.size - jnp.maximum(count, 1)]
        more, same = part > least, part == least
        free = count - jnp.sum(more, dtype=jnp.int32)
        found.append(more | (same & (jnp.cumsum(same, dtype=jnp.int32) <= free)))
    return jnp.concatenate(found)


def in_layers(mask: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Return how many of each layer are kept, ``[n] -> [layers]`` int32."""
    parts = jnp.split(mask, np.cumsum(sizes)[:-1])
    return jnp.stack([jnp.sum(part, dtype=jnp.int32) for part in parts])


def layer_counts(params: Any, density: float, layers: Layers) -> list[int]:
    """Return how many weights of each layer a model of a density keeps, at least one.

    ``uniform`` keeps this share of each. ``erk`` keeps of a layer of shape ``s`` a
    share ``e sum(s) / prod(s)``, at most all, with the ``e`` that gives the density:
    the Erdos-Renyi kernel of Evci et al., RigL, ICML 2020, section 3.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(params) if _is_kernel(leaf)]
    size = np.array(sizes(params))
    if layers == "uniform":
        return [kept(int(n), density) for n in size]
    full, free = np.zeros(len(size), bool), np.array([sum(s) for s in shapes], float)
    while True:
        left = density * size.sum() - size[full].sum()
        share = left / max(free[~full].sum(), 1) * free / size
        over = ~full & (share > 1)
        if not over.any():
            whole = np.where(full, 1.0, share)
            return [kept(int(n), float(d)) for n, d in zip(size, whole, strict=True)]
        full |= over
