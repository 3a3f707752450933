"""The scaler of HeteroFL: narrow layers answer as loudly as whole ones."""

import jax
import jax.numpy as jnp

from fad._errors import ConfigError


def scaler(x: jax.Array, scale: float) -> jax.Array:
    """Return a hidden layer's output, before norm and ReLU, divided by ``scale``.

    Source: E. Diao, J. Ding, V. Tarokh, HeteroFL, ICLR 2021, section 3.
    """
    return x if scale == 1 else x / scale


def check_scale(model: str, scale: float) -> None:
    """Raise a ConfigError unless a scale is positive and finite."""
    if not 0 < scale < jnp.inf:
        raise ConfigError(
            f"fad.models.{model}(scale=...): expected a finite number above 0; got "
            f"{scale!r}."
        )
