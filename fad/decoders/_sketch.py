"""What a sketch is, and the one that is a matrix at hand."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError, describe


class Sketch(abc.ABC):
    """A linear map S from ``[d]`` to ``[p]``, a pytree.

    Attributes:
        rows: p.
        size: d.
        quick: Whether a product takes far less than ``p d`` steps.
    """

    rows: int
    size: int
    quick: bool = False

    @abc.abstractmethod
    def apply(self, theta: jax.Array) -> jax.Array:
        """Return ``S theta``: ``[d] -> [p]``."""

    @abc.abstractmethod
    def transpose(self, v: jax.Array) -> jax.Array:
        """Return ``S^T v``: ``[p] -> [d]``."""

    @abc.abstractmethod
    def columns(self, index: jax.Array) -> jax.Array:
        """Return some columns of S: ``int[k] -> [p, k]``."""

    def ready(self) -> "Sketch":
        """Return the same sketch with what it draws from its seed drawn."""
        return self

    def gram(self, v: jax.Array) -> jax.Array:
        """Return ``S S^T v``: ``[p] -> [p]``."""
        return self.apply(self.transpose(v))

    def largest(self) -> jax.Array:
        """Return the largest eigenvalue of ``S^T S``: ``[]``."""
        return largest_eigenvalue(self.gram, jnp.ones(self.rows))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Sketch):
    """A matrix ``[p, d]``."""

    matrix: jax.Array

    @property
    def rows(self) -> int:  # type: ignore[override]
        """The number of rows."""
        return self.matrix.shape[0]

    @property
    def size(self) -> int:  # type: ignore[override]
        """The number of columns."""
        return self.matrix.shape[1]

    def apply(self, theta: jax.Array) -> jax.Array:
        """Return ``S theta``."""
        return _product(self.matrix, theta).astype(theta.dtype)

    def transpose(self, v: jax.Array) -> jax.Array:
        """Return ``S^T v``."""
        return _product(v, self.matrix).astype(v.dtype)

    def columns(self, index: jax.Array) -> jax.Array:
        """Return some columns of S."""
        return self.matrix[:, index]

    def largest(self) -> jax.Array:
        """Return the largest eigenvalue of ``S^T S``."""
        start = jnp.ones(self.rows, self.matrix.dtype)
        return largest_eigenvalue(self.gram, start)


def dense(matrix: jax.Array) -> Sketch:
    """Make the sketch of a matrix, by whose entries one can differentiate.

    Args:
        matrix: S, ``[p, d]``.

    Returns:
        The sketch.

    Raises:
        FadError: If it is no matrix of real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> dense(jnp.array([[1.0, 2.0]])).apply(jnp.ones(2)).tolist()
        [3.0]
    """
    if jnp.ndim(matrix) != 2 or not jnp.issubdtype(
        jnp.result_type(matrix), jnp.floating
    ):
        raise FadError(
            f"fad.decoders.dense: matrix is {describe(matrix)}; expected a matrix of "
            "real numbers, [p, d]."
        )
    return Dense(jnp.asarray(matrix))


def of_data(
    call: str, sketch: Sketch | Callable[[Any], Sketch]
) -> Callable[[Any], Sketch]:
    """Return ``data -> S`` of either."""

    def made(data: Any) -> Sketch:
        s = sketch if isinstance(sketch, Sketch) else sketch(data)
        if not isinstance(s, Sketch):
            raise FadError(
                f"{call}: sketch(data) returned {describe(s)}; expected a sketch, such "
                "as fad.decoders.gaussian(rows, size, seed)."
            )
        return s

    if not callable(sketch) and not isinstance(sketch, Sketch):
        raise FadError(
            f"{call}: sketch is {describe(sketch)}; expected a sketch, such as "
            "fad.decoders.gaussian(rows, size, seed), or a function of the data."
        )
    return made


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply in the wider of the dtypes."""
    dtype = max(a.dtype, b.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), precision="highest")


def largest_eigenvalue(
    product: Callable[[jax.Array], jax.Array], like: jax.Array, *, steps: int = 20
) -> jax.Array:
    """Return the largest eigenvalue of a positive matrix, from below: ``[]``.

    By power iteration from a random vector.
    """
    key = jax.random.key(0)
    start = jax.random.normal(key, like.shape, jnp.float32).astype(like.dtype)

    def step(v: jax.Array, _: None) -> tuple[jax.Array, None]:
        return product(v / jnp.linalg.norm(v)), None

    return jnp.linalg.norm(jax.lax.scan(step, start, length=steps)[0])
