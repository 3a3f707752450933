"""How much of its gradients a client's optimizer adds up: FedNova's ``|a|_1``."""

from typing import Any

import jax
import jax.numpy as jnp


def coefficients(steps: Any, bound: int, momentum: Any, damping: Any) -> jax.Array:
    """Return ``|a|_1 []`` after ``steps`` of at most ``bound`` steps, 0 after none.

    With a gradient of one at each, ``c <- momentum c + 1`` is the step, and ``|a|_1``
    the way: ``(1 - damping) |a|_1 + c``.
    """

    def count(carry, k):
        c = momentum * carry[0] + 1
        after = c, (1 - damping) * carry[1] + c
        return jax.tree.map(lambda a, b: jnp.where(k < steps, a, b), after, carry), None

    zero = jnp.zeros((), jnp.result_type(float))
    (_, norm), _ = jax.lax.scan(count, (zero, zero), jnp.arange(bound))
    return norm
