"""The geometric median of the updates, by sums alone."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.aggregators._aggregator import Aggregator, mean_by_sums
from fad.aggregators._checks import check_count, check_number
from fad.aggregators._norm import norm, wide
from fad.primitives import map, sum


def geometric_median(*, passes: int = 4, nu: Any = 1e-6) -> Aggregator:
    """Move the mean towards the geometric median, ``argmin_z sum_i w_i |z - v_i|``.

    RFA: from ``z = sum_i w_i v_i / sum_i w_i`` the smoothed Weiszfeld algorithm makes
    some passes, over the whole update::

        b_i = w_i / max(nu, |z - v_i|)      at each client, which keeps its v_i
        z <- sum_i b_i v_i / sum_i b_i      = z + sum_i b_i (v_i - z) / sum_i b_i

    in the second form: its summands have norms of at most ``w_i``, so a secure sum
    knows their range. A round has ``1 + passes`` phases with the same cohort. Only sums
    reach the server, so ``fad.check`` accepts it.

    While corrupted clients hold less than half of the weight, their share ``a``, the
    median is near the others' updates, however far theirs are; but of such a distance a
    pass leaves about ``a / (1 - a)``, so few passes let much of it through. An update
    whose norm is above the root of the largest number of its dtype (1.8e19 in float32)
    counts for nothing: its sums would overflow.

    It is differentiable by updates, weights and ``nu``, almost everywhere; where ``z``
    is closer than ``nu`` to an update, ``b_i`` is a constant there.

    Args:
        passes: Of the algorithm; 0 gives the mean.
        nu: Positive, the smoothing, a distance; may be a traced value.

    Returns:
        The aggregator.

    Raises:
        FadError: ``passes`` is no int of at least 0, or ``nu`` is not positive.

    Example:
        >>> import fad
        >>> @fad.program
        ... def middle(updates, weights):
        ...     rfa = geometric_median(passes=20)
        ...     return rfa.combine(updates, weights, fad.sum)
        >>> updates = fad.AtClients(jnp.array([1.0, 2.0, 1000.0]))
        >>> round(float(middle(updates, fad.AtClients(jnp.ones(3)))), 2)
        2.0

    References:
        Pillutla et al., Robust Aggregation for Federated Learning, IEEE Transactions
        on Signal Processing 2022, algorithm 2.
    """
    call = "fad.aggregators.geometric_median"
    check_count(call, "passes", passes, least=0)
    check_number(call, "nu", nu)

    def combine(messages, weights, total):
        # Kept by the clients over the passes: fad.jit would train again for each.
        messages, weights = map(_within, messages, weights, remat=False)
        z = mean_by_sums(messages, weights, total)
        for _ in range(passes):
            pulls, parts = map(lambda v, w, z=z: _pull(z, v, w, nu), messages, weights)
            z = _moved(z, total(pulls), sum(parts))
        return z

    return Aggregator(combine=combine)


def _within(update: Any, weight: Any) -> tuple[Any, Any]:
    """Return an update and its weight, 0 for one too far away to compute with."""
    far = norm(update).value > float(jnp.finfo(wide(update)).max) ** 0.5
    still = jax.tree.map(lambda x: jnp.where(far, jnp.zeros_like(x), x), update)
    return still, jnp.where(far, jnp.zeros_like(weight), weight)


def _pull(z: Any, update: Any, weight: Any, nu: Any) -> tuple[Any, jax.Array]:
    """Return ``b_i (v_i - z)`` and ``b_i``."""
    dtype, counts = wide(update), weight > 0

    def gap(v, z):
        apart = v.astype(dtype) - z.astype(dtype)
        return jnp.where(counts, apart, jnp.zeros_like(apart))

    gaps = jax.tree.map(gap, update, z)
    distance = jnp.maximum(norm(gaps).value, jnp.asarray(nu).astype(dtype))
    w = weight.astype(dtype)
    # The distance is no less than any coordinate of the gap, also as rounded.
    pulls = jax.tree.map(
        lambda g, v: (w * (g / distance)).astype(v.dtype), gaps, update
    )
    return pulls, w / distance


def _moved(z: Any, pull: Any, parts: jax.Array) -> Any:
    safe = jnp.where(parts == 0, jnp.ones_like(parts), parts)  # nobody is there
    return jax.tree.map(lambda x, p: x + p / safe.astype(p.dtype), z, pull)
