"""Arrays of strong types."""

from typing import Any

import jax
import jax.numpy as jnp


def strong(x: Any) -> jax.Array:
    """Return an array without JAX's weak type.

    A scan would not carry a weak type that a step makes strong, and a compiled step
    would compile anew at the second call.
    """
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return x
    return jnp.asarray(x, dtype)
