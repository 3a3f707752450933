"""Server steps that were far too large, told by the clients' loss and undone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad

_FADE = 0.9  # how fast the worst loss of late is forgotten
_TRIES = 4  # steps undone in a row for a loss that is a number: then it is the clients'
_MOST = 20  # steps undone in a row at all


class Safeguard(NamedTuple):
    """What the server remembers to undo its last step."""

    anchor: Any  # the params before that step
    worst: jax.Array  # the worst loss of late; infinite before the first
    in_row: jax.Array  # steps undone since one was kept, a count


class Verdict(NamedTuple):
    """Whether a round counts, and whether what it started from was fine."""

    good: jax.Array
    fine: jax.Array


def begin(params: Any) -> Safeguard:
    """Return a safeguard that accepts any first loss that is finite."""
    worst = jnp.array(jnp.inf, jnp.result_type(float))
    return Safeguard(params, worst, jnp.zeros_like(worst))


def judge(
    guard: Safeguard,
    estimate: fad.estimators.Estimate,
    *,
    params: Any,
    seen: jax.Array,
    reject: float,
) -> tuple[Verdict, Safeguard]:
    """Say whether to keep the params that the clients were sent, and remember it.

    They are fine where their loss exceeds the worst of late by at most ``reject - 1``
    times its size, or no client had an example; the round counts where what follows
    from it is finite too.
    """
    loss, worst = estimate.value, guard.worst.astype(estimate.value.dtype)
    first = jnp.isinf(worst)
    bound = jnp.where(first, worst, worst + (reject - 1) * jnp.abs(worst))
    judged = (loss <= bound) | (guard.in_row >= _TRIES) | (seen == 0)
    fine = jnp.isfinite(loss) & judged
    good = fine & (estimate.bad_round < 0)
    recent = jnp.maximum(loss, _FADE * worst + (1 - _FADE) * loss)
    recent = jnp.where(first, loss, recent)
    recent = jnp.where(seen == 0, worst, recent)
    kept = Safeguard(params, recent, jnp.zeros_like(guard.in_row))
    after = choose(good, kept, guard._replace(in_row=guard.in_row + 1))
    return Verdict(good, fine | (estimate.bad_round > 0)), after


def choose(condition: jax.Array, a: Any, b: Any) -> Any:
    """Return one of two trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def undone(guard: Safeguard, verdict: Verdict, params: Any, shrink: float) -> Any:
    """Return the params after a step that is smaller by the factor ``shrink``.

    Where the params were fine, and only what followed was not, it is they.
    """

    def back(anchor, x):
        step = (x - anchor) / shrink
        return anchor + jnp.where(jnp.isfinite(step), step, jnp.zeros_like(step))

    return choose(verdict.fine, params, jax.tree.map(back, guard.anchor, params))


def check(metrics: dict[str, float]) -> None:
    """End a run in which no server step is small enough."""
    if metrics["undone"] >= _MOST:
        raise fad.RunError(
            f"self_tuning_fedavg: {_MOST} server steps in a row were undone, since the "
            "clients' loss, or the model after their round, was no number. A client_lr "
            "that diverges, or clients' data that is not finite, is the likely cause."
        )
