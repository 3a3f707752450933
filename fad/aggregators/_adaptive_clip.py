"""DP-FedAvg with a clipping bound that follows a quantile of the updates' norms.

Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021,
Algorithm 1. In a round with the bound C, m expected clients and the target quantile g:

    client:  v_i = D_i min(1, C / |D_i|),    b_i = 1 if |D_i| <= C else 0
    server:  step = (sum_i v_i + N(0, (z_D C)^2 I)) / m
             b = (sum_i (b_i - 1/2) + N(0, s_b^2)) / m + 1/2
             C <- C exp(-rate (b - g))

One client moves the first sum by C and, counted from 1/2, the second by 1/2. Both
together are one Gaussian mechanism of noise multiplier z (Theorem 1) with

    z_D = (z^-2 - (2 s_b)^-2)^(-1/2)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._checks import check_number
from fad.aggregators._clip import clip_to
from fad.aggregators._gaussian import add_noise, as_float, mean_over

_CALL = "fad.aggregators.adaptive_clip"


class Clipping(NamedTuple):
    """What the server knows: the bound, and of the last round the noised fraction."""

    bound: jax.Array
    clipped: jax.Array


def adaptive_clip(
    *,
    noise_multiplier: Any,
    clients: Any,
    initial_bound: Any = 0.1,
    quantile: Any = 0.5,
    rate: Any = 0.2,
    indicator_noise: Any = None,
) -> Aggregator:
    """DP-FedAvg whose clipping bound follows a quantile of the updates' norms.

    It clips, averages with a fixed denominator, adds the noise and moves the bound. A
    client's bit, whether its update was within the bound, is summed with the update, by
    the same ``total``, in units of the bound; so put it behind all stages that change
    updates. ``secure_sum`` keeps a bound of its own: a round with a coordinate above
    that one, to which this bound may grow, gives NaN.

    The bit has no derivative; that of the rest is as in ``dp_fedavg``, through the
    bounds of all rounds.

    Shown after a round: ``clip_bound``, the next round's, and ``clipped_fraction``, of
    the expected clients. Both are made of the noised sum of bits alone, never of the
    bits; the fraction may be below 0 or above 1.

    Args:
        noise_multiplier: z, of both sums together, as ``fad.aggregators.epsilon`` takes
            it; from 0. The hyper-parameters but for ``clients`` may be traced.
        clients: m, as many as a round expects.
        initial_bound: C of the first round.
        quantile: Of the norms, which the bound follows, in [0, 1].
        rate: How fast it follows.
        indicator_noise: s_b, the deviation of the noise on the sum of bits, above
            ``noise_multiplier / 2``; None for ``0.05 * clients``. 0 if z is 0.

    Returns:
        The aggregator; see ``gaussian_mean`` for what its account assumes.

    Raises:
        FadError: A number is out of range; in a round, if there is no key.

    Example:
        >>> quiet = adaptive_clip(noise_multiplier=0, clients=2, indicator_noise=0)
        >>> state = quiet.init(None)
        >>> (sent, bit), _ = quiet.client((), state, (), jnp.array([3.0, 4.0]), None)
        >>> [round(float(x), 4) for x in (*sent, bit)]  # not within: -1/2 bound
        [0.06, 0.08, -0.05]

    References:
        Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS
        2021, Algorithm 1.
    """
    _check_numbers(noise_multiplier, clients, initial_bound, quantile, rate)
    if indicator_noise is None:
        indicator_noise = 0.05 * clients
    check_indicator_noise(_CALL, noise_multiplier, indicator_noise)

    def server(theta, state, mean, params, key):
        del theta, params
        mean, halves = mean
        unit = jax.lax.stop_gradient(jnp.where(state.bound > 0, state.bound, 1))
        keys = (None, None) if key is None else jax.random.split(key)
        spread = _update_noise(noise_multiplier, indicator_noise) * state.bound
        step = add_noise(_CALL, mean, spread / as_float(clients), keys[0])
        spread = as_float(indicator_noise) / as_float(clients)
        within = add_noise(_CALL, halves / unit, spread, keys[1]) + 0.5
        move = jnp.exp(-as_float(rate) * (within - as_float(quantile)))
        return step, Clipping(state.bound * move, 1 - within)

    return Aggregator(
        init=lambda params: Clipping(as_float(initial_bound), as_float(0.0)),
        client=_send,
        server=server,
        combine=mean_over(clients),
        metrics=lambda s: {"clip_bound": s.bound, "clipped_fraction": s.clipped},
    )


def _send(
    theta: Any, state: Clipping, memory: Any, update: Any, key: Any
) -> tuple[Any, Any]:
    """Send the clipped update, and the bit from 1/2, in bounds."""
    del theta, key
    clipped, above = clip_to(update, state.bound)
    half = jnp.where(above, -0.5, 0.5).astype(state.bound.dtype)
    return (clipped, jax.lax.stop_gradient(half * state.bound)), memory


def _check_numbers(
    noise_multiplier: Any, clients: Any, initial_bound: Any, quantile: Any, rate: Any
) -> None:
    check_number(_CALL, "noise_multiplier", noise_multiplier, low=0)
    check_number(_CALL, "clients", clients)
    check_number(_CALL, "initial_bound", initial_bound)
    check_number(_CALL, "quantile", quantile, low=0, high=1)
    check_number(_CALL, "rate", rate, low=0)


def check_indicator_noise(call: str, z: Any, noise: Any) -> None:
    """Refuse noise on the bits that leaves none for the updates.

    Raises:
        FadError: It is not above ``z / 2``, nor both 0.
    """
    check_number(call, "indicator_noise", noise, low=0)
    try:
        good = float(z) < 2 * float(noise) or float(z) == float(noise) == 0
    except jax.errors.ConcretizationTypeError:
        return
    if not good:
        raise FadError(
            f"{call}: with noise_multiplier = {z} expected indicator_noise above "
            f"{float(z) / 2}, half of it, got {noise}. The sum of bits "
            "alone would tell more than both sums may. Usual is 0.05 * clients."
        )


def _update_noise(z: Any, indicator_noise: Any) -> jax.Array:
    """Return z_D, as ``z / sqrt(1 - (z / 2 s_b)^2)``, which is 0 with z."""
    z, doubled = as_float(z), 2 * as_float(indicator_noise)
    share = z / jnp.where(doubled > 0, doubled, 1)
    return z / jnp.sqrt(1 - share**2)
