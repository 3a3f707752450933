"""What the rounds of FedAvg's kin share: who weighs what, and the server's step."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._taking_part import Nonfinite, cohort_metrics, takes_part

Weighting = Literal["examples", "uniform"]


def weigh(
    update: Any, num_examples: jax.Array, weighting: Weighting, nonfinite: Nonfinite
) -> tuple[jax.Array, jax.Array]:
    """Return one client's weight ``[]``, and whether it is left out, a bool ``[]``.

    The weight is 0 for a client without examples, or left out.
    """
    counts, left_out = takes_part(update, num_examples, nonfinite)
    if weighting == "uniform":
        num_examples = jnp.ones_like(num_examples)
    return jnp.where(counts, num_examples, jnp.zeros_like(num_examples)), left_out


def screened(
    metrics: dict[str, Any],
    nonfinite: Nonfinite,
    losses: fad.AtClients,
    weights: fad.AtClients,
    left_out: fad.AtClients,
) -> dict[str, Any]:
    """Return the metrics with ``excluded_clients``, if clients may be left out."""
    if nonfinite == "refuse":
        return metrics
    return metrics | cohort_metrics(losses, weights, left_out)


def move(params: Any, direction: Any, lr: Any) -> Any:
    """Return ``params + lr * direction``, in the dtypes of the params."""
    return jax.tree.map(
        lambda p, d: p + jnp.asarray(lr, p.dtype) * d.astype(p.dtype), params, direction
    )


def server_step(
    params: Any, delta: Any, memory: Any, server: optax.GradientTransformation, lr: Any
) -> tuple[Any, Any]:
    """Return the params and the optimizer's memory after a step along ``delta``.

    The optimizer takes the mean update ``delta``, negative, as a gradient.
    """
    gradient = jax.tree.map(jnp.negative, delta)
    direction, memory = server.update(gradient, memory, params)
    return move(params, direction, lr), memory
