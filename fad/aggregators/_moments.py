"""What the learned aggregators share: what a client sends, and the run's length."""

from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import ConfigError


def moments(update: Any) -> dict[str, Any]:
    """Return what a client sends so that means give moments: itself, square, sign."""
    return {
        "mean": update,
        "square": jax.tree.map(jnp.square, update),
        "sign": jax.tree.map(jnp.sign, update),
    }


def check_rounds(name: str, rounds: Any) -> None:
    """Refuse a length of training that is no positive int.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(
            f"fad.aggregators.{name}(rounds=...): expected a positive int, the length "
            f"of training; got {rounds!r}."
        )
