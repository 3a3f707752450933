"""From a pullback, the function of a cotangent, to a gradient and a Jacobian."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.modes._arguments import Problem
from fad.modes._basis import basis, split_rows


def gradient_of(pulled: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Return a scalar's value, its gradient, and the auxiliary."""
    value, back, aux = pulled
    return value, back(jnp.ones_like(value)), aux


def jacobian_of(pulled: tuple[Any, Any, Any], task: Problem) -> tuple[Any, Any, Any]:
    """Return the value, the Jacobian per output and argument, and the auxiliary."""
    value, back, aux = pulled
    rows = jax.vmap(back)(basis(value))
    by_input = jax.tree.map(lambda r: split_rows(r, value), rows)
    inputs, outputs = jax.tree.structure(task.chosen), jax.tree.structure(value)
    return value, jax.tree.transpose(inputs, outputs, by_input), aux
