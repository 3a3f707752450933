"""Linear systems ``A v = b`` by a fixed number of products with ``A``.

``matvec`` maps a pytree of real arrays to one of the same structure, shapes and dtypes.
Where it is federated, a product is a round; a start ``x0`` costs one product more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._strong import strong
from fad.estimators._vectors import add, dot, zeros

MatVec = Callable[[Any], Any]


class Solution(NamedTuple):
    """What a solver says of ``A v = b``.

    Attributes:
        value: ``v``, of b's structure.
        residual: ``[]``, ``|b - A v| / |b|``; zero where b is, if v is right.
        indefinite: ``[]`` bool, whether a direction with ``p'Ap <= 0`` was met.
    """

    value: Any
    residual: jax.Array
    indefinite: jax.Array


def conjugate_gradient(
    matvec: MatVec, b: Any, *, terms: int, x0: Any = None
) -> Solution:
    """Solve ``A v = b`` for a symmetric A by conjugate gradients.

    At a residual of zero up to rounding the value stays as it is. For a negative
    definite A it is as good as for a positive definite one, though flagged.

    Args:
        matvec: ``v -> A v``.
        b: The right-hand side.
        terms: The number of products with A.
        x0: Where to start; None for zero.
    """
    b, x, r = _start(matvec, b, x0)
    negligible = _negligible(b)

    def step(state: Any, _: None) -> tuple[Any, None]:
        x, r, p, square, indefinite = state
        product = matvec(p)
        curvature, going = dot(p, product), ~(square <= negligible)  # NaN goes on
        alpha = _divide(square, curvature, going & (curvature != 0))
        x, r = add(x, p, alpha), add(r, product, -alpha)
        new = dot(r, r)
        p = add(r, p, _divide(new, square, going))
        return (x, r, p, new, indefinite | (going & (curvature <= 0))), None

    start = (x, r, r, dot(r, r), jnp.array(False))
    (x, _, _, square, indefinite), _ = jax.lax.scan(step, start, length=terms)
    return Solution(x, _relative(square, b), indefinite)


def neumann(
    matvec: MatVec, b: Any, *, terms: int, step: Any, x0: Any = None
) -> Solution:
    """Solve ``A v = b`` by ``v = step * sum_{k=0}^{terms} (I - step A)^k b``.

    It converges where every eigenvalue of ``step A`` is within 1 of 1; A need not be
    symmetric. The residual is that of the sum without its last addend, since its own
    would cost one product more; above 1 the series diverges.

    Args:
        matvec: ``v -> A v``.
        b: The right-hand side.
        terms: The number of products with A, one less than there are addends.
        step: The step, a positive number or ``[]``.
        x0: Where to start, with ``b - A x0`` in place of b; None for zero.
    """
    b, x, r = _start(matvec, b, x0)
    negligible = _negligible(b)

    def advance(state: Any, _: None) -> tuple[Any, None]:
        x, r, indefinite = state
        product = matvec(r)
        met = (dot(r, r) > negligible) & (dot(r, product) <= 0)
        r = add(r, product, -step)
        return (add(x, r, step), r, indefinite | met), None

    start = (add(x, r, step), r, jnp.array(False))
    (x, r, indefinite), _ = jax.lax.scan(advance, start, length=terms)
    return Solution(x, _relative(dot(r, r), b), indefinite)


def _start(matvec: MatVec, b: Any, x0: Any) -> tuple[Any, Any, Any]:
    """Return b, the first value and its residual."""
    b = jax.tree.map(strong, b)
    if x0 is None:
        return b, zeros(b), b
    x0 = jax.tree.map(strong, x0)
    return b, x0, add(b, matvec(x0), -1.0)


def _negligible(b: Any) -> jax.Array:
    """Return the square of the residual that is left by rounding alone."""
    square = dot(b, b)
    return square * jnp.finfo(square.dtype).eps ** 2


def _divide(a: jax.Array, b: jax.Array, where: jax.Array) -> jax.Array:
    """Return ``a / b``, zero elsewhere."""
    ratio = a / jnp.where(where, b, jnp.ones_like(b))
    return jnp.where(where, ratio, jnp.zeros_like(ratio))


def _relative(square: jax.Array, b: Any) -> jax.Array:
    """Return ``|r| / |b|`` of a residual's square."""
    size = dot(b, b)
    return jnp.sqrt(square / jnp.where(square == 0, jnp.ones_like(size), size))
