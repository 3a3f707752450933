"""Meta-steps that a diverging inner run cannot spoil."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fad._errors import FadError, RunError, nearest
from fad.estimators._checks import all_finite, check_positive
from fad.estimators._estimator import Estimate

_POLICIES = ("skip", "clip", "raise")


class InnerRunDiverged(RunError):
    """An inner run's loss, state or derivative became infinite or NaN.

    Attributes:
        round: The round in which it did.
        state: The last finite inner state.
    """

    def __init__(self, message: str, *, round: int, state: Any) -> None:
        super().__init__(message)
        self.round, self.state = round, state


class SafeUpdate(NamedTuple):
    """A meta-optimizer that never lets a number that is not finite into theta.

    ``init(theta) -> state`` and ``update(estimate, state, theta) -> (theta, state)``
    are pure and may be jitted. ``check(estimate, round)`` runs on the host: given the
    number of the window's first round, it returns the ``InnerRunDiverged`` to report,
    or None where all is well, and raises it where that was asked for.
    """

    init: Callable[[Any], Any]
    update: Callable[[Estimate, Any, Any], tuple[Any, Any]]
    check: Callable[[Estimate, int], InnerRunDiverged | None]


def safe_update(
    optimizer: optax.GradientTransformation,
    *,
    on_divergence: Literal["skip", "clip", "raise"] = "skip",
    max_norm: float | None = None,
) -> SafeUpdate:
    """Wrap a meta-optimizer so that a diverging inner run leaves theta finite.

    * ``"skip"``: theta and the optimizer's state stay as they are.
    * ``"clip"``: the entries of the gradient that are not finite count as zero, the
      rest is clipped to ``max_norm``, and the step is taken; a gradient without a
      finite entry is skipped.
    * ``"raise"``: as skip, and ``check`` raises.

    In each, a step that would leave a number in theta or in the optimizer's state that
    is not finite is skipped too. The inner run is yours to begin anew, from another
    state (``estimator.init``) or from ``estimate.last_state``: its carry is lost, but
    for ``es`` where a perturbed run alone diverged, which the message says.

    Args:
        optimizer: Any optax gradient transformation; it is passed ``value=``, the
            window's mean loss, if it takes it.
        on_divergence: What to do where ``estimate.finite`` is False.
        max_norm: The greatest global norm of a gradient, finite windows included; None
            for no bound, but ``"clip"`` needs one.

    Returns:
        A ``SafeUpdate``.

    Raises:
        FadError: If the policy is unknown, ``max_norm`` is not positive, or ``"clip"``
            has none.

    Example:
        >>> import jax.numpy as jnp, optax, fad
        >>> @fad.program
        ... def round(lr, w, cohort, key):
        ...     w = w - lr * fad.mean(fad.map(lambda x: w**3 - x, cohort))
        ...     return w, w**2
        >>> estimator = fad.estimators.reverse(round)
        >>> meta = fad.estimators.safe_update(optax.sgd(0.1), on_divergence="skip")
        >>> lr, cohorts = jnp.array(3.0), fad.AtClients(jnp.ones((6, 2)))
        >>> carry = estimator.init(lr, jnp.zeros(()), None)
        >>> estimate = estimator.estimate(lr, carry, cohorts, jnp.zeros(6))
        >>> new_lr, _ = meta.update(estimate, meta.init(lr), lr)
        >>> found = meta.check(estimate, 100)
        >>> float(new_lr), found.round, bool(jnp.isfinite(found.state))
        (3.0, 104, True)
    """
    call = "fad.estimators.safe_update"
    if on_divergence not in _POLICIES:
        known = nearest(str(on_divergence), _POLICIES, "policies")
        raise FadError(f"{call}: unknown on_divergence {on_divergence!r}. {known}")
    if max_norm is not None:
        max_norm = check_positive(call, "max_norm", max_norm)
    elif on_divergence == "clip":
        raise FadError(
            f'{call}(on_divergence="clip"): expected max_norm, the norm to clip to, '
            "got None. Pass one, such as 1.0."
        )
    stepper = optax.with_extra_args_support(optimizer)

    def update(estimate: Estimate, state: Any, theta: Any) -> tuple[Any, Any]:
        gradient, usable = estimate.gradient, estimate.finite
        if on_divergence == "clip":
            usable = _any_finite(gradient)
            gradient = jax.tree.map(
                lambda g: jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)), gradient
            )
        if max_norm is not None:
            gradient = _clip(gradient, max_norm)
        change, new_state = stepper.update(gradient, state, theta, value=estimate.value)
        new = (optax.apply_updates(theta, change), new_state)
        return _where(usable & _stays_finite(new, (theta, state)), new, (theta, state))

    def check(estimate: Estimate, round: int) -> InnerRunDiverged | None:
        if estimate.finite:
            return None
        error = _error(estimate, round)
        if on_divergence == "raise":
            raise error
        return error

    return SafeUpdate(optimizer.init, update, check)


def _clip(gradient: Any, max_norm: float) -> Any:
    """Clip to a global norm, also where its square would overflow."""

    def shrink(g):
        return (g / jnp.maximum(1, largest / max_norm).astype(g.dtype)).astype(g.dtype)

    leaves = [jnp.abs(g).max() for g in jax.tree.leaves(gradient) if g.size]
    with jax.numpy_dtype_promotion("standard"):
        largest = jnp.stack(leaves).max() if leaves else jnp.zeros(())
    clip = optax.clip_by_global_norm(max_norm)
    return clip.update(jax.tree.map(shrink, gradient), clip.init(gradient))[0]


def _any_finite(gradient: Any) -> jax.Array:
    found = [jnp.isfinite(g).any() for g in jax.tree.leaves(gradient)]
    return jnp.stack(found).any()


def _stays_finite(new: Any, old: Any) -> jax.Array:
    """Say whether what was finite still is (some optimizers begin with an infinity)."""
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return jnp.stack([all_finite(x) | ~all_finite(y) for x, y in pairs]).all()


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _error(estimate: Estimate, first: int) -> InnerRunDiverged:
    bad = int(estimate.bad_round)
    if bad >= 0 and _went_on(estimate):
        message = (
            f"a run at a perturbed theta diverged in round {first + bad}: its loss or "
            "its state is not finite, and the gradient is lost. The run at theta is "
            "fine, may go on from its carry, and its state is this error's .state. A "
            "smaller sigma or a smaller step inside is the likely fix."
        )
        return InnerRunDiverged(message, round=first + bad, state=estimate.last_state)
    if bad >= 0:
        message = (
            f"the inner run diverged in round {first + bad}: its loss or its state is "
            "not finite. A smaller step inside, a smaller meta-step or a shorter run "
            "is the likely fix, or clients' data that is finite; the last finite state "
            "is this error's .state."
        )
        return InnerRunDiverged(message, round=first + bad, state=estimate.last_state)
    message = (
        f"the derivative of the window that starts in round {first} is not finite, "
        "though its losses and states are. Shorter windows, memory below 1 or "
        "fad.estimators.pes is the likely fix."
    )
    return InnerRunDiverged(message, round=first, state=estimate.last_state)


def _went_on(estimate: Estimate) -> bool:
    """Say whether the inner run had no bad round: those of perturbed runs are left."""
    pair = jax.tree.leaves(estimate.last_state), jax.tree.leaves(estimate.carry.state)
    same = all((a == b).all() for a, b in zip(*pair, strict=True))
    return same and bool(all_finite((estimate.value, estimate.carry)))
