"""Fixed points of a step, plain or accelerated, on pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._strong import strong
from fad.estimators._vectors import add, dot, norm


class _State(NamedTuple):
    """The last value, where the next step begins, its momentum, and the way moved."""

    step: jax.Array
    y: Any
    z: Any
    momentum: jax.Array
    moved: jax.Array


def iterate(
    advance: Callable[[Any], Any],
    start: Any,
    *,
    steps: int,
    tolerance: Any,
    accelerated: bool,
) -> Any:
    """Repeat ``y <- advance(y)`` until it moves by at most ``tolerance |y|``.

    Accelerated it is FISTA, whose momentum begins anew where it points uphill
    (O'Donoghue and Candes, 2015, the gradient scheme). NaN ends it.
    """
    start = jax.tree.map(strong, start)
    one = jnp.ones_like(norm(start))

    def going(s: _State) -> jax.Array:
        return (s.step < steps) & (
            s.moved > jnp.asarray(tolerance, s.moved.dtype) * norm(s.y)
        )

    def step(s: _State) -> _State:
        y = advance(s.z)
        moved = norm(add(y, s.z, -1.0))
        if not accelerated:
            return _State(s.step + 1, y, y, one, moved)
        uphill = dot(add(s.z, y, -1.0), add(y, s.y, -1.0)) > 0
        momentum = jnp.where(uphill, one, (1 + jnp.sqrt(1 + 4 * s.momentum**2)) / 2)
        ahead = jnp.where(uphill, 0 * one, (s.momentum - 1) / momentum)
        z = add(y, add(y, s.y, -1.0), ahead)
        return _State(s.step + 1, y, z, momentum, moved)

    first = _State(jnp.int32(0), start, start, one, one * jnp.inf)
    return jax.lax.while_loop(going, step, first).y
