"""Antithetic evolution strategies over a window."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._strong import strong
from fad.estimators._checks import (
    all_finite,
    check_count,
    check_key,
    check_positive,
    check_theta,
    checked,
    window_length,
)
from fad.estimators._estimator import Estimate, Estimator, Round
from fad.estimators._particles import contract, perturb, run_particles
from fad.estimators._window import first_bad


class Carry(NamedTuple):
    """The inner state, of the run at theta itself, and the key of the next draw."""

    state: Any
    key: jax.Array


def es(round: Round, *, sigma: float, pairs: int) -> Estimator:
    """Estimate the gradient of each window from its losses at perturbed thetas.

    ``mean_i e_i (L(theta + e_i) - L(theta - e_i)) / (2 sigma^2)`` with ``e_i`` from
    N(0, sigma^2): the gradient of the loss smoothed over theta, without a derivative.
    The rounds need not be differentiable, and where a derivative explodes this does
    not. All runs of a window start from one state, that of the run at theta itself, so
    the truncation bias is that of ``fad.estimators.reverse``.

    A theta below float32, perturbed, is rounded to either neighbour at random, so that
    sigma may be less than the spacing of its numbers.

    The ``2 pairs`` perturbed runs go side by side with the run at theta, over the same
    cohorts and keys: no round is added, no client comes back, and traffic, work and
    the state's memory are ``1 + 2 pairs`` times the rounds' own.

    ``value``, ``carry`` and ``last_state`` are those of the run at theta. ``bad_round``
    is the first round in which any run is bad, and ``finite`` covers every run's loss:
    where a perturbed run alone diverges there is no gradient, but the carry goes on;
    where only its state does, and no loss, ``finite`` is True.

    Args:
        round: As in ``fad.estimators.forward``; it need not be differentiable.
        sigma: The standard deviation of the perturbations, positive.
        pairs: The number of antithetic pairs, at least 1.

    Returns:
        The estimator; ``init`` takes a key.

    Raises:
        FadError: If sigma is not positive or there is no pair; when called, as
            ``fad.estimators.forward``.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def round(lr, w, cohort, key):
        ...     w = w - lr * fad.mean(fad.map(lambda x: w - x, cohort))
        ...     return w, fad.mean(fad.map(lambda x: (w - x) ** 2, cohort))
        >>> estimator = fad.estimators.es(round, sigma=0.1, pairs=1000)
        >>> cohorts, keys = fad.AtClients(jnp.ones((1, 3))), jnp.zeros(1)
        >>> carry = estimator.init(0.5, jnp.zeros(()), jax.random.key(0))
        >>> slope = estimator.estimate(0.5, carry, cohorts, keys).gradient
        >>> bool(abs(slope + 1) < 0.1)  # d (1 - lr)^2 / d lr
        True

    References:
        Metz et al., "Understanding and correcting pathologies in the training of
        learned optimizers", ICML 2019 (section 3).
    """
    call = "fad.estimators.es"
    sigma = check_positive(call, "sigma", sigma)
    pairs = check_count(call, "pairs", pairs, least=1)
    run_round = checked(call, round)

    def init(theta: Any, state: Any, key: jax.Array) -> Carry:
        check_key(call, key)
        check_theta(call, theta)
        return Carry(jax.tree.map(strong, state), key)

    def estimate(theta: Any, carry: Carry, cohorts: Any, keys: Any) -> Estimate:
        theta = check_theta(call, theta)
        window_length(call, cohorts, keys)
        key, draw = jax.random.split(carry.key)
        noise, sides = perturb(draw, theta, sigma, pairs)
        thetas = jax.tree.map(
            lambda x, both: jnp.concatenate([x[None], both]), theta, sides
        )
        values, runs, ok = run_particles(
            run_round, thetas, carry.state, cohorts, keys, shared=True
        )
        above, below = values[1 : 1 + pairs], values[1 + pairs :]
        gradient = contract(above, below, noise, sigma, theta)
        run = jax.tree.map(lambda x: x[0], runs)
        after = Carry(run.state, key)
        finite = all_finite((values, gradient, after))
        return Estimate(values[0], gradient, after, finite, first_bad(ok), run.last)

    bias = (
        "truncated and smoothed: the gradient of the window's mean loss, averaged over "
        f"theta + N(0, {sigma:g}^2); theta's effect on the state that the window "
        "starts from is left out"
    )
    return Estimator(init, estimate, bias)
