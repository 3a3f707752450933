"""Server steps that were far too large, told by the clients' loss and undone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad

_FADE = 0.9  # how fast the worst loss of late is forgotten
_MOST = 20  # steps undone in a row


class Safeguard(NamedTuple):
    """What the server remembers to undo its last step."""

    anchor: Any  # the params before that step
    worst: jax.Array  # the worst loss of late; infinite before the first
    in_row: jax.Array  # steps undone since one was kept, a count


def begin(params: Any) -> Safeguard:
    """Return a safeguard that accepts any first loss that is finite."""
    worst = jnp.array(jnp.inf, jnp.result_type(float))
    return Safeguard(params, worst, jnp.zeros_like(worst))


def judge(
    guard: Safeguard, params: Any, estimate: fad.estimators.Estimate, reject: float
) -> tuple[jax.Array, Safeguard]:
    """Say whether to keep the params that the clients were sent, and remember it.

    They are kept where their loss is at most ``reject`` times the worst of late and
    what follows from them is finite.
    """
    loss, worst = estimate.value, guard.worst.astype(estimate.value.dtype)
    good = (estimate.bad_round < 0) & (loss <= reject * worst)
    recent = jnp.maximum(loss, _FADE * worst + (1 - _FADE) * loss)
    recent = jnp.where(jnp.isinf(worst), loss, recent)
    kept = Safeguard(params, recent, jnp.zeros_like(guard.in_row))
    return good, choose(good, kept, guard._replace(in_row=guard.in_row + 1))


def choose(condition: jax.Array, a: Any, b: Any) -> Any:
    """Return one of two trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def undone(guard: Safeguard, params: Any, shrink: float) -> Any:
    """Return the params after a step that is smaller by the factor ``shrink``."""

    def back(anchor, x):
        step = (x - anchor) / shrink
        return anchor + jnp.where(jnp.isfinite(step), step, jnp.zeros_like(step))

    return jax.tree.map(back, guard.anchor, params)


def check(metrics: dict[str, float]) -> None:
    """End a run in which no server step is small enough."""
    if metrics["undone"] >= _MOST:
        raise fad.RunError(
            f"self_tuning_fedavg: {_MOST} server steps in a row were undone, each "
            f"smaller than the one before, and the clients' loss is still "
            f"{metrics['train_loss']:.3g}. It is not the server's step that diverges; "
            "a smaller client_lr is the likely fix."
        )
