"""A window of rounds, followed so that the round in which it diverges is known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad.estimators._checks import all_finite
from fad.estimators._estimator import Round


class Followed(NamedTuple):
    """The inner state of a run, and the last one before it diverged."""

    state: Any
    last: Any
    alive: jax.Array


def begin(state: Any) -> Followed:
    """Follow a run from this state on."""
    return Followed(state, state, jnp.array(True))


def follow(run: Followed, new: Any, loss: jax.Array) -> tuple[Followed, jax.Array]:
    """Go on to a new state; say whether it and the loss are finite."""
    ok = all_finite((new, loss))
    alive = run.alive & ok
    last = jax.tree.map(
        lambda a, b: jnp.where(alive, jax.lax.stop_gradient(a), b), new, run.last
    )
    return Followed(new, last, alive), ok


def first_bad(ok: jax.Array) -> jax.Array:
    """Return the place of the first False of ``[k]``, -1 if there is none."""
    return jnp.where(ok.all(), -1, jnp.argmin(ok)).astype(jnp.int32)


def run_window(
    round: Round,
    theta: Any,
    state: Any,
    cohorts: Any,
    keys: Any,
    *,
    levels: int = 0,
    apart: bool = False,
) -> tuple[jax.Array, tuple[Followed, jax.Array]]:
    """Return the mean loss of the window's rounds, and ``(run, ok: [k])``.

    ``levels`` are those of ``scan_rounds``; ``apart`` leaves the last round out of the
    scan, where mixed mode can find it.
    """

    def step(run, inputs):
        new, loss = round(theta, run.state, *inputs)
        run, ok = follow(run, new, loss)
        return run, (loss, ok)

    if apart:
        run, rest = begin(state), []
        first, last = _cut((cohorts, keys), -1)
        if jax.tree.leaves(first)[0].shape[0]:
            run, ys = jax.lax.scan(step, run, first)
            rest = [ys]
        run, ys = step(run, jax.tree.map(lambda x: x[0], last))
        ys = _join([*rest, jax.tree.map(lambda y: y[None], ys)])
    else:
        run, ys = scan_rounds(step, begin(state), (cohorts, keys), levels=levels)
    losses, ok = ys
    return losses.mean(), (run, ok)


def scan_rounds(step: Callable, carry: Any, xs: Any, *, levels: int) -> tuple[Any, Any]:
    """Scan over rounds so that a derivative keeps few of the carries.

    ``levels = 0`` keeps what the rounds make; 1 keeps a carry per round and computes
    the round again; L nests L scans, keeps about ``L k^(1/L)`` carries, and computes a
    round L times more.
    """
    if levels == 0:
        return jax.lax.scan(step, carry, xs)
    length = jax.tree.leaves(xs)[0].shape[0]

    # Rounds are looked up, since a nested scan over slices would keep copies of them.
    def indexed(carry, i):
        at = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)  # noqa: E731
        return step(carry, jax.tree.map(at, xs))

    return _nest(indexed, carry, jnp.arange(length), levels)


def _nest(step: Callable, carry: Any, rounds: jax.Array, levels: int) -> Any:
    length = len(rounds)
    size = block_size(length, levels)
    if size == 1:
        return _scan(step, carry, rounds)
    full = length - length % size
    carry, ys = _scan(
        lambda c, block: _nest(step, c, block, levels - 1),
        carry,
        rounds[:full].reshape(-1, size),
    )
    ys = jax.tree.map(lambda y: y.reshape(full, *y.shape[2:]), ys)
    if full < length:
        carry, rest = _nest(step, carry, rounds[full:], levels - 1)
        ys = _join([ys, rest])
    return carry, ys


def _scan(step: Callable, carry: Any, xs: Any) -> Any:
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, xs)


def block_size(length: int, levels: int) -> int:
    """Return the rounds of a block of the outermost of ``levels`` scans.

    A divisor near the best size, if there is one: a rest would be compiled again.
    """
    best = round(length ** ((levels - 1) / levels))
    near = [b for b in range(2, 2 * best + 1) if not length % b and best <= 2 * b]
    if length < 4 or levels == 1:
        return 1
    return min(near, key=lambda b: abs(b - best), default=best)


def _cut(tree: Any, at: int) -> tuple[Any, Any]:
    return tuple(
        jax.tree.map(lambda x, part=part: x[part], tree)
        for part in (slice(None, at), slice(at, None))
    )


def _join(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
