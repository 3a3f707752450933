"""The means of tiers as one."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.primitives import Coverage


def merged(coverages: Sequence[Coverage]) -> Coverage:
    """Join the tiers' means: each coordinate's over the clients of all that have it.

    With means ``m_t`` and weights ``w_t`` it is ``sum_t w_t m_t / sum_t w_t``, what
    ``fad.coverage_mean`` gives for all clients at once. A coordinate that no tier
    covers stays what it is in the means.

    Args:
        coverages: What ``fad.coverage_mean`` gave for each tier, with one ``x``.

    Returns:
        Means and weights of the same structure.

    Raises:
        FadError: There is none, or they differ in structure.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> wide = fad.Coverage(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0]))
        >>> narrow = fad.Coverage(jnp.array([4.0, 9.0, 9.0]), jnp.array([2.0, 0, 0]))
        >>> [part.tolist() for part in merged([wide, narrow])]
        [[3.0, 2.0, 9.0], [3.0, 1.0, 0.0]]
    """
    structures = {jax.tree.structure(tuple(each)) for each in coverages}
    if len(structures) != 1:
        found = " and ".join(sorted(map(str, structures))) or "none"
        raise FadError(
            "fad.submodels.merged(coverages): expected coverages of one structure, one "
            f"for each tier; got {found}. Average each tier over the same x."
        )
    weight = jax.tree.map(lambda *w: sum(w), *(each.weight for each in coverages))

    def mean(total: jax.Array, *parts: Any) -> jax.Array:
        means, weights = parts[: len(coverages)], parts[len(coverages) :]
        covered = total > 0
        with jax.numpy_dtype_promotion("standard"):  # in the wider of the two dtypes
            summed = sum(
                jnp.where(w > 0, m, jnp.zeros_like(m)) * w
                for m, w in zip(means, weights, strict=True)
            )
            joined = summed / jnp.where(covered, total, jnp.ones_like(total))
        return jnp.where(covered, joined.astype(means[0].dtype), means[0])

    both = [*(each.mean for each in coverages), *(each.weight for each in coverages)]
    return Coverage(jax.tree.map(mean, weight, *both), weight)
