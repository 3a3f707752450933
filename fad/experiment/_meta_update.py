"""The meta-step: several inner runs' gradients, of which some may not be finite."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fad.estimators import Estimate, SafeUpdate, safe_update
from fad.experiment._meta_config import MetaTraining


def make_update(config: MetaTraining) -> SafeUpdate:
    """Return the meta-optimizer: Adam along a cosine, which never gives a NaN."""
    schedule = optax.cosine_decay_schedule(config.meta_lr, config.steps, alpha=0.1)
    return safe_update(optax.adam(schedule))


def join(
    config: MetaTraining, gradients: Sequence[Any], finite: Sequence[Any]
) -> tuple[Any, jax.Array]:
    """Average the clipped gradients of the inner runs that count.

    Args:
        config: It says the norm, and which runs count.
        gradients: One per run.
        finite: Whether each run's estimate is.

    Returns:
        The mean, and whether any run counts.
    """
    kept = [_kept(config, *pair) for pair in zip(gradients, finite, strict=True)]
    counts = jnp.stack([counts for _, counts in kept])
    total = jax.tree.map(lambda *g: jnp.stack(g).sum(axis=0), *[g for g, _ in kept])
    number = jnp.maximum(counts.sum(), 1)
    mean = jax.tree.map(lambda g: g / number.astype(g.dtype), total)
    return mean, counts.any()


def _kept(config: MetaTraining, gradient: Any, finite: Any) -> tuple[Any, jax.Array]:
    """Clip one run's gradient; it is zero where the run does not count."""
    entries = [jnp.isfinite(g) for g in jax.tree.leaves(gradient)]
    if config.on_divergence == "clip":
        counts = jnp.stack([e.any() for e in entries]).any()
    else:
        counts = jnp.asarray(finite)

    def clean(g):
        return jnp.where(counts & jnp.isfinite(g), g, jnp.zeros_like(g))

    gradient = jax.tree.map(clean, gradient)
    clip = optax.clip_by_global_norm(config.clip)
    return clip.update(gradient, clip.init(gradient))[0], counts


def as_estimate(gradient: Any, counts: jax.Array) -> Estimate:
    """Return what ``SafeUpdate.update`` takes."""
    none = jnp.zeros(())
    return Estimate(none, gradient, None, counts, jnp.int32(-1), None)
