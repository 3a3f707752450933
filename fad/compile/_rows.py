"""Client arrays whose client axis is filled up so that a mesh can split it."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_pytree_node_class
class Padded:
    """An array whose client axis holds more rows than there are clients.

    Rows from ``n`` on are copies of the last client's (or anything): they never count.

    Attributes:
        array: The array.
        axis: Its client axis.
        n: The number of clients.
    """

    def __init__(self, array: Any, axis: int, n: int):
        self.array, self.axis, self.n = array, axis, n

    def tree_flatten(self) -> tuple[tuple[Any], tuple[int, int]]:
        """Return the array, and what is static."""
        return (self.array,), (self.axis, self.n)

    @classmethod
    def tree_unflatten(cls, aux: tuple[int, int], children: tuple[Any]) -> "Padded":
        """Rebuild."""
        return cls(children[0], *aux)

    def stacked(self, array: Any) -> "Padded":
        """Return the same with an iteration axis in front."""
        return Padded(array, self.axis + 1, self.n)

    def unstacked(self, array: Any) -> "Padded":
        """Return the same without its leading iteration axis."""
        return Padded(array, self.axis - 1, self.n)

    def struct(self) -> jax.ShapeDtypeStruct:
        """Return the type that a program sees."""
        shape = list(self.array.shape)
        shape[self.axis] = self.n
        return jax.ShapeDtypeStruct(shape, self.array.dtype)

    def clients(self) -> Any:
        """Return the array with the clients' rows alone."""
        return jax.lax.slice_in_dim(self.array, 0, self.n, axis=self.axis)


def fill_up(x: Any, rows: int, axis: int = 0) -> Any:
    """Repeat the last row until there are ``rows``."""
    missing = rows - x.shape[axis]
    if not missing:
        return x
    last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
    return jnp.concatenate([x, *[last] * missing], axis)
