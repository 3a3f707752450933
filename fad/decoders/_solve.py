"""Linear systems of an encoding, by products that end once it is solved."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Solve = Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]


def conjugate_gradients(most: int) -> Solve:
    """Return ``(matvec, b) -> A^-1 b`` for a positive A, in ``most`` products or less.

    It ends at a residual of rounding errors, unlike that of ``fad.estimators``, whose
    products may be rounds and are as many as planned; and where a direction is left
    along which A is zero up to rounding.
    """

    def solve(matvec: Any, b: jax.Array) -> jax.Array:
        eps, size = 10 * jnp.finfo(b.dtype).eps, jnp.vdot(b, b)

        def going(state: Any) -> jax.Array:
            k, _, _, _, square, _ = state
            return (k < most) & (square > eps**2 * size)

        def step(state: Any) -> Any:
            k, x, r, p, square, steepest = state
            product, length = matvec(p), jnp.vdot(p, p)
            curvature = jnp.vdot(p, product)
            steepest = jnp.maximum(steepest, curvature / length)
            flat = curvature <= eps * steepest * length
            alpha = jnp.where(flat, 0, square / jnp.where(flat, 1, curvature))
            x, r = x + alpha * p, r - alpha * product
            new = jnp.where(flat, 0, jnp.vdot(r, r))
            return k + 1, x, r, r + new / square * p, new, steepest

        zero = 0 * size * b  # What is not finite, or has no finite size, gives NaN.
        start = (jnp.int32(0), zero, b, b, size, jnp.zeros_like(size))
        return jax.lax.while_loop(going, step, start)[1]

    return solve


def normal_equations(most: int) -> Solve:
    """Return ``(matvec, b) -> A^-1 b`` for any regular A, by ``A^T A v = A^T b``."""

    def solve(matvec: Any, b: jax.Array) -> jax.Array:
        back = jax.linear_transpose(matvec, b)
        return conjugate_gradients(most)(lambda v: back(matvec(v))[0], back(b)[0])

    return solve
