"""The proximal term of a client's loss, as a part of its optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def proximal(mu: Any, center: Any = None) -> optax.GradientTransformation:
    """Add the gradient of ``mu / 2 |x - center|^2``; ``mu`` may be traced.

    Without a center it is where training started. The loss that training reports is
    that without the term.
    """

    def init(params):
        return params if center is None else center

    def update(updates, state, params=None):
        def pulled(g, x, c):
            return g + jnp.asarray(mu, x.dtype) * (x - c)

        return jax.tree.map(pulled, updates, params, state), state

    return optax.GradientTransformation(init, update)
