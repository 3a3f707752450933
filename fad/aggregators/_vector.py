"""A tree as one vector, and a code of a tree that knows the way back."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad.aggregators._norm import wide

PyTree = Any


class Like(NamedTuple):
    """A tree's structure, shapes and dtypes."""

    treedef: Any
    types: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return sum(t.size for t in self.types)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coded:
    """Numbers in the place of a tree.

    Attributes:
        code: The numbers.
        like: What they stand for; no data, so nothing of it travels.
    """

    code: Any
    like: Like = dataclasses.field(metadata={"static": True})


def like(tree: PyTree) -> Like:
    """Return what the tree is like."""
    leaves, treedef = jax.tree.flatten(tree)
    types = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
    return Like(treedef, types)


def ravel(tree: PyTree) -> jax.Array:
    """Return all coordinates, leaf by leaf, in the widest dtype of them: ``[d]``."""
    leaves = jax.tree.leaves(tree)
    with jax.numpy_dtype_promotion("standard"):  # the casts below are explicit
        dtype = jnp.result_type(*leaves)
    return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in leaves])


def unravel(vector: jax.Array, like: Like) -> PyTree:
    """Return the tree of which ``vector`` holds the coordinates."""
    leaves, start = [], 0
    for t in like.types:
        part = vector[start : start + t.size]
        leaves.append(part.reshape(t.shape).astype(t.dtype))
        start += t.size
    return like.treedef.unflatten(leaves)


def at_least_single(x: jax.Array) -> jax.Array:
    """Return ``x`` in float32 if it has 16 bits."""
    return x.astype(wide(x))


def straight_through(value: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``value``, to the last bit, with the derivative of ``x``."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))
