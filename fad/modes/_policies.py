"""What ``jax.checkpoint`` saves of a round."""

from typing import Any

from fad.primitives import deselect_p, sum_p


def save_aggregates(prim: Any, *args: Any, **params: Any) -> bool:
    """Let ``jax.checkpoint`` save what sums over clients gave, and recompute the rest.

    Without it a checkpoint around a round repeats the round's communication in the
    backward pass: the gradient of 3 rounds sums 6 models up instead of 3. With it the
    server keeps the aggregates, one model per round, and only sends models again.

    Args:
        prim: The primitive.
        *args: Its operands' types.
        **params: Its parameters.

    Returns:
        Whether its result is saved.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def step(w, data):
        ...     return jnp.sin(fad.mean(fad.map(lambda x: w * x, data)))
        >>> def train(w, data, policy):
        ...     one = jax.checkpoint(step, policy=policy)
        ...     return one(one(w, data), data)
        >>> data, plans = fad.AtClients(jnp.ones(4)), []
        >>> for policy in (None, fad.save_aggregates):
        ...     gradient = jax.grad(lambda w, d: train(w, d, policy))
        ...     plans.append(fad.plan(gradient)(1.0, data))
        >>> [sum(len(r.up) for r in plan.rounds) for plan in plans]
        [5, 4]
    """
    del args, params
    return prim in (sum_p, deselect_p)
