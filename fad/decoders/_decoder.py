"""What a decoder is, and those without a solver.

FedSep sends x and learns y, where ``y(x) = argmin_y g(x, y)`` is *decoded*. A change of
y is *encoded* by the transpose of the decoder's derivative, ``(dy/dx)^T v``: the change
of x that descends on a loss of y(x) if v descends on the loss of y.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Decoder(NamedTuple):
    """A map from what is sent to what is learned, and how far it is from exact.

    Attributes:
        decode: ``decode(x, data) -> y``, differentiable in x and in the real arrays of
            data; ``jax.vjp`` by x is the encoder.
        residual: ``residual(x, y, data) -> []``: how far y is from solving for x,
            relative to where the decoder begins; zero where it is exact.

    References:
        Li and Huang, "Resolving the Tug-of-War: A Separation of Communication and
        Learning in Federated Learning", NeurIPS 2023, section 3.
    """

    decode: Callable[[Any, Any], Any]
    residual: Callable[[Any, Any, Any], jax.Array]


def identity() -> Decoder:
    """Make the decoder ``y = x``: FedSep with it is FedAvg.

    Returns:
        The decoder; it is the minimiser of ``|y - x|^2 / 2``.

    Example:
        >>> float(identity().decode(3.0, None))
        3.0
    """
    return closed_form(lambda x, data: x)


def closed_form(fn: Callable[[Any, Any], Any]) -> Decoder:
    """Make a decoder of a function that JAX differentiates as it stands.

    Args:
        fn: ``fn(x, data) -> y``.

    Returns:
        The decoder; its residual is zero.

    Example:
        >>> import jax
        >>> ridge = closed_form(lambda x, data: x / (1 + data))
        >>> y, encode = jax.vjp(lambda x: ridge.decode(x, 3.0), 8.0)
        >>> float(y), float(encode(1.0)[0])
        (2.0, 0.25)
    """

    def residual(x: Any, y: Any, data: Any) -> jax.Array:
        del x, data
        with jax.numpy_dtype_promotion("standard"):  # leaves may have many dtypes
            return jnp.zeros((), jnp.result_type(*jax.tree.leaves(y)))

    return Decoder(fn, residual)


def relative(size: jax.Array, start: jax.Array) -> jax.Array:
    """Return ``size / start``; zero where size is."""
    return size / jnp.where(size == 0, jnp.ones_like(start), start)
