"""Persistent evolution strategies: perturbed runs go on from window to window."""

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
from fad.estimators._particles import contract, noise_dtype, perturb, run_particles
from fad.estimators._window import first_bad


class Carry(NamedTuple):
    """What particles keep.

    Attributes:
        state: Their inner states, ``[2 pairs, *s]``; the mirrored ones come second.
        noise: The sum of each pair's perturbations so far, ``[pairs, *theta]``, in at
            least float32.
        key: Of the next draw.
    """

    state: Any
    noise: Any
    key: jax.Array


def pes(round: Round, *, sigma: float, pairs: int) -> Estimator:
    """Estimate the gradient through the whole run from its perturbed windows.

    Each particle keeps its own inner state from window to window and is perturbed anew
    in each; its loss is credited to the sum of its perturbations so far,

        mean_i (e_i1 + ... + e_it) (L_t(+) - L_t(-)) / (2 sigma^2).

    So short windows are unbiased for the smoothed loss of the whole run, where those of
    ``fad.estimators.es`` and ``reverse`` are not; the variance grows with the windows
    since ``init``. With one window it is ``es``, with the same draws from a key.

    As in ``es`` no round is added and no client comes back; traffic, work and the
    state's memory are ``2 pairs`` times the rounds' own. There is no run at theta:
    ``value`` is the mean over the particles, ``carry.state`` and ``last_state`` are
    ``[2 pairs, *s]``, each particle's own, ``bad_round`` is the first round in which
    any particle is bad, and ``finite`` covers every particle's loss and state. One that
    diverged ends the run of all: begin anew.

    Args:
        round: As in ``fad.estimators.forward``; it need not be differentiable.
        sigma: The standard deviation of the perturbations, positive.
        pairs: The number of antithetic pairs, at least 1.

    Returns:
        The estimator; ``init`` takes a key.

    Raises:
        FadError: As ``fad.estimators.es``.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def round(lr, w, cohort, key):
        ...     w = w - lr * fad.mean(fad.map(lambda x: w - x, cohort))
        ...     return w, fad.mean(fad.map(lambda x: (w - x) ** 2, cohort))
        >>> estimator = fad.estimators.pes(round, sigma=0.01, pairs=1000)
        >>> cohorts, keys = fad.AtClients(jnp.ones((1, 3))), jnp.zeros(1)
        >>> carry = estimator.init(0.5, jnp.zeros(()), jax.random.key(0))
        >>> for _ in range(2):
        ...     estimate = estimator.estimate(0.5, carry, cohorts, keys)
        ...     carry = estimate.carry
        >>> bool(abs(estimate.gradient + 0.5) < 0.1)  # d (1 - lr)^4 / d lr
        True

    References:
        Vicol, Metz and Sohl-Dickstein, "Unbiased gradient estimation in unrolled
        computation graphs with persistent evolution strategies", ICML 2021
        (Algorithm 2).
    """
    call = "fad.estimators.pes"
    sigma = check_positive(call, "sigma", sigma)
    pairs = check_count(call, "pairs", pairs, least=1)
    run_round = checked(call, round)

    def init(theta: Any, state: Any, key: jax.Array) -> Carry:
        check_key(call, key)
        theta, state = check_theta(call, theta), jax.tree.map(strong, state)
        states = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (2 * pairs, *x.shape)), state
        )
        return Carry(
            states,
            jax.tree.map(lambda x: jnp.zeros((pairs, *x.shape), noise_dtype(x)), theta),
            key,
        )

    def estimate(theta: Any, carry: Carry, cohorts: Any, keys: Any) -> Estimate:
        theta = check_theta(call, theta)
        window_length(call, cohorts, keys)
        key, draw = jax.random.split(carry.key)
        noise, thetas = perturb(draw, theta, sigma, pairs)
        values, runs, ok = run_particles(
            run_round, thetas, carry.state, cohorts, keys, shared=False
        )
        total = jax.tree.map(jnp.add, carry.noise, noise)
        gradient = contract(values[:pairs], values[pairs:], total, sigma, theta)
        after = Carry(runs.state, total, key)
        finite = all_finite((values, gradient, after))
        value = values.mean()
        return Estimate(value, gradient, after, finite, first_bad(ok), runs.last)

    bias = (
        f"smoothed: the gradient of the window's mean loss through the whole run, "
        f"averaged over theta + N(0, {sigma:g}^2) in each window"
    )
    return Estimator(init, estimate, bias)
