"""Inner runs at perturbed thetas, side by side."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.estimators._estimator import Round
from fad.estimators._window import Followed, run_window


def perturb(key: jax.Array, theta: Any, sigma: float, pairs: int) -> tuple[Any, Any]:
    """Draw ``pairs`` perturbations from N(0, sigma^2).

    Returns:
        The noise ``[pairs, *s]``, in at least float32, and theta ``[*s]`` plus it, then
        minus it: ``[2 pairs, *s]``.
    """
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(key, len(leaves))
    noise, sides = [], []
    for k, x in zip(keys, leaves, strict=True):
        dtype = noise_dtype(x)
        e = sigma * jax.random.normal(k, (pairs, *x.shape), dtype)
        both = x.astype(dtype)[None] + jnp.concatenate([e, -e])
        noise.append(e)
        sides.append(both if dtype == x.dtype else _round(k, both, x.dtype))
    return treedef.unflatten(noise), treedef.unflatten(sides)


def noise_dtype(x: jax.Array) -> Any:
    """Return what the noise of a leaf of theta is drawn and summed in."""
    return x.dtype if x.dtype.itemsize >= 4 else jnp.float32


def _round(key: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
    """Round to a neighbour at random so that the mean is x.

    To the nearest, noise below the spacing of ``dtype`` would mostly vanish, and what
    is left would have another variance than the estimate divides by.
    """
    near = x.astype(dtype)
    rest = x - near.astype(x.dtype)
    far = jnp.nextafter(near, jnp.where(rest > 0, jnp.inf, -jnp.inf).astype(dtype))
    gap = jnp.abs(far.astype(x.dtype) - near.astype(x.dtype))
    draw = jax.random.uniform(jax.random.fold_in(key, 1), x.shape, x.dtype)
    return jnp.where(draw * gap < jnp.abs(rest), far, near)


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


def contract(
    above: jax.Array, below: jax.Array, noise: Any, sigma: float, theta: Any
) -> Any:
    """Return ``mean_i noise_i (above_i - below_i) / (2 sigma^2)``, typed as theta."""
    dtype = noise_dtype(above)
    half = (above.astype(dtype) - below.astype(dtype)) / (2 * sigma)

    def mean(e, x):
        total = jnp.tensordot(half.astype(e.dtype), e / sigma, 1)
        return (total / len(half)).astype(x.dtype)

    return jax.tree.map(mean, noise, theta)
