"""What an estimator is: two pure functions, and what it answers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Round = Callable[[Any, Any, Any, Any], tuple[Any, jax.Array]]


class Estimate(NamedTuple):
    """What an estimator says of one window of rounds.

    Attributes:
        value: ``[]``, the mean of the rounds' losses over the window.
        gradient: The gradient by theta, of theta's structure, shapes and dtypes.
        carry: What the next window goes on from; ``carry.state`` is the inner state.
        finite: ``[]`` bool, whether the value, the gradient and the carry all are; of
            perturbed runs every loss too.
        bad_round: ``[]`` int32, the first round of the window, from 0, in which a loss
            or a new inner state, of any run side by side, is not finite; -1 if none is.
            Where it is -1 and ``finite`` is False, the derivative alone overflowed.
        last_state: The last finite state of the runs that ``carry.state`` holds: the
            carry's own where none of their rounds is bad, the one the window began with
            where the first is. Those are the inner run; for ``es`` the one at theta, so
            that a bad perturbed run leaves both as they are; for ``pes`` each particle.
    """

    value: jax.Array
    gradient: Any
    carry: Any
    finite: jax.Array
    bad_round: jax.Array
    last_state: Any


class Estimator(NamedTuple):
    """An estimator of the gradient of an inner run, as a record of pure functions.

    ``init(theta, state, key) -> carry`` begins an inner run; ``key`` is for estimators
    that draw numbers of their own, the others do not look at it. ``estimate(theta,
    carry, cohorts, keys) -> Estimate`` runs a window of k rounds and differentiates it:
    ``cohorts`` has leaves ``[k, n, *]`` (``AtClients`` values stacked over rounds) and
    ``keys`` is ``[k]``. Both may be jitted: ``fad.jit(estimator.estimate, chunk=1)``.
    ``bias`` says in words what the estimate converges to.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def round(lr, w, cohort, key):
        ...     w = w - lr * fad.mean(fad.map(lambda x: w - x, cohort))
        ...     return w, fad.mean(fad.map(lambda x: (w - x) ** 2, cohort))
        >>> estimator = fad.estimators.reverse(round)
        >>> cohorts = fad.AtClients(jnp.ones((2, 3)))  # 2 rounds, 3 clients
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> carry = estimator.init(0.5, jnp.zeros(()), None)
        >>> estimate = estimator.estimate(0.5, carry, cohorts, keys)
        >>> float(estimate.value), float(estimate.gradient), float(estimate.carry.state)
        (0.15625, -0.75, 0.75)
    """

    init: Callable[[Any, Any, Any], Any]
    estimate: Callable[[Any, Any, Any, Any], Estimate]
    bias: str
