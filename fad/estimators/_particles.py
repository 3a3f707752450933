"""Inner runs at perturbed thetas, side by side."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.estimators._estimator import Round
from fad.estimators._window import Followed, run_window


def perturb(key: jax.Array, theta: Any, sigma: float, pairs: int) -> Any:
    """Draw ``pairs`` perturbations from N(0, sigma^2): ``[*s] -> [pairs, *s]``."""
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        sigma * jax.random.normal(k, (pairs, *x.shape), x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    )


def both_sides(theta: Any, noise: Any) -> Any:
    """Return theta plus the noise, then minus it: ``[*s], [m, *s] -> [2m, *s]``."""
    return jax.tree.map(
        lambda x, e: jnp.concatenate([x[None] + e, x[None] - e]), theta, noise
    )


def run_particles(
    round: Round, thetas: Any, states: Any, cohorts: Any, keys: Any, *, shared: bool
) -> tuple[jax.Array, Followed, jax.Array]:
    """Run a window at each theta; return the mean losses, the runs, and ``ok: [k]``.

    The particles share cohorts and keys, so that what they differ in is theta; with
    ``shared`` they start from one state.
    """

    def one(theta, state):
        return run_window(round, theta, state, cohorts, keys)

    axes = (0, None if shared else 0)
    values, (runs, ok) = jax.vmap(one, axes)(thetas, states)
    return values, runs, ok.all(0)


def contract(above: jax.Array, below: jax.Array, noise: Any, sigma: float) -> Any:
    """Return ``mean_i noise_i (above_i - below_i) / (2 sigma^2)``."""
    half = (above - below) / (2 * sigma)
    return jax.tree.map(
        lambda e: jnp.tensordot(half.astype(e.dtype), e / sigma, 1) / len(half), noise
    )
