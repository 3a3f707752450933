"""The gradient of one window by fad's modes, truncated at the window's start."""

from typing import Any, Literal, NamedTuple

import jax

from fad._errors import FadError, nearest
from fad._strong import strong
from fad.estimators._checks import (
    all_finite,
    check_count,
    check_theta,
    checked,
    window_length,
)
from fad.estimators._estimator import Estimate, Estimator, Round
from fad.estimators._window import first_bad, run_window
from fad.modes import value_and_grad

_MODES = ("forward", "reverse", "mixed")


class Carry(NamedTuple):
    """The inner state."""

    state: Any


def reverse(
    round: Round,
    *,
    mode: Literal["forward", "reverse", "mixed"] = "reverse",
    levels: int = 2,
) -> Estimator:
    """Differentiate each window alone; the state passes on without its derivative.

    One window as long as the run gives the exact gradient. Shorter ones leave out what
    theta did to the state that a window starts from: the truncation bias, towards what
    pays off within a window.

    In reverse mode a window of k rounds takes k backward rounds more, with the same
    clients and the same data, last cohort first; the traffic does not depend on the
    size of theta. ``levels`` says what the server keeps meanwhile, and what runs again:

    * 0: what the rounds make. Two rounds per round and the least traffic, as a
      deployment wants; clients keep what they computed.
    * 1: the inner state before each round. Memory grows by one state per round.
    * 2: about ``2 sqrt(k)`` states, in two nested scans; 3 or more nest further.

    Each level runs the clients' work once more, and what it sends: of 100 rounds a plan
    counts 198, 199, 280 and 335 at levels 0 to 3. ``fad.jit(estimator.estimate,
    chunk=1)`` compiles it without memory per client; under ``jax.jit`` clients run side
    by side.

    Args:
        round: As in ``fad.estimators.forward``.
        mode: Of ``fad.grad``. ``"forward"`` and ``"mixed"`` send tangents along, add no
            backward round, and keep no state: for a small theta. ``"mixed"`` runs the
            last round in reverse inside its clients.
        levels: Of reverse mode, the nested scans, at least 0.

    Returns:
        The estimator; ``init`` needs no key.

    Raises:
        FadError: If the mode is unknown or levels negative; when called, as
            ``fad.estimators.forward``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> @fad.program
        ... def round(lr, w, cohort, key):
        ...     w = w - lr * fad.mean(fad.map(lambda x: w - x, cohort))
        ...     return w, fad.mean(fad.map(lambda x: (w - x) ** 2, cohort))
        >>> estimator = fad.estimators.reverse(round)
        >>> cohorts, keys = fad.AtClients(jnp.ones((1, 3))), jnp.zeros(1)
        >>> carry = estimator.init(0.5, jnp.array(0.5), None)
        >>> float(estimator.estimate(0.5, carry, cohorts, keys).gradient)
        -0.25
        >>> estimator.bias
        "truncated: theta's effect on the state that the window starts from is left out"

    References:
        Wu et al., "Understanding short-horizon bias in stochastic meta-optimization",
        ICLR 2018; Griewank and Walther, "Algorithm 799: revolve", ACM TOMS 2000, on
        keeping few states.
    """
    call = "fad.estimators.reverse"
    if mode not in _MODES:
        raise FadError(
            f"{call}: unknown mode {mode!r}. {nearest(mode, _MODES, 'modes')}"
        )
    levels = check_count(call, "levels", levels, least=0)
    run_round = checked(call, round)

    def init(theta: Any, state: Any, key: Any) -> Carry:
        del key
        check_theta(call, theta)
        return Carry(jax.tree.map(strong, state))

    def estimate(theta: Any, carry: Carry, cohorts: Any, keys: Any) -> Estimate:
        theta = check_theta(call, theta)
        window_length(call, cohorts, keys)

        def loss(theta, state, cohorts, keys):
            nested = levels if mode == "reverse" else 0
            return run_window(
                run_round,
                theta,
                state,
                cohorts,
                keys,
                levels=nested,
                apart=mode == "mixed",
            )

        gradient = value_and_grad(loss, mode=mode, has_aux=True)
        (value, (run, ok)), gradient = gradient(theta, carry.state, cohorts, keys)
        after = Carry(run.state)
        finite = all_finite((value, gradient, after))
        return Estimate(value, gradient, after, finite, first_bad(ok), run.last)

    bias = (
        "truncated: theta's effect on the state that the window starts from is left out"
    )
    return Estimator(init, estimate, bias)
