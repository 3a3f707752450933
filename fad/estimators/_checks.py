"""The arguments of estimators, and what a round returns, checked by path."""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError, describe, path_str
from fad._strong import strong
from fad.modes._basis import is_real

_SHAPE_HINT = (
    "Stack one cohort and one key per round: jax.tree.map(lambda *x: jnp.stack(x), "
    "*cohorts) and jax.random.split(key, k)."
)


def check_theta(call: str, theta: Any, *, name: str = "theta") -> Any:
    """Return theta, or what else is differentiated by, as arrays of strong types.

    Raises:
        FadError: If a leaf is no real array, or there is none.
    """
    named = jax.tree_util.tree_leaves_with_path(theta)
    for path, leaf in named:
        dtype = getattr(leaf, "dtype", type(leaf))
        if dtype is not float and not jnp.issubdtype(dtype, jnp.floating):
            raise FadError(
                f"{call}: {path_str(name, path)} is {describe(leaf)}; expected real "
                "numbers to differentiate by. Keep counters and options in the state, "
                "or close over them."
            )
    if not named:
        raise FadError(
            f"{call}: {name} has no arrays; expected a pytree of real arrays."
        )
    return jax.tree.map(strong, theta)


def window_length(call: str, cohorts: Any, keys: Any) -> int:
    """Return the number of rounds that the cohorts and keys are for.

    Raises:
        FadError: If they disagree, or there is no round.
    """
    named = [
        (path_str(root, path), leaf)
        for root, tree in (("cohorts", cohorts), ("keys", keys))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    lengths = {jnp.shape(x)[:1] for _, x in named}
    if len(lengths) != 1 or not min(lengths, default=()) or (0,) in lengths:
        listing = "\n".join(f"  {path}: {describe(x)}" for path, x in named)
        raise FadError(
            f"{call}: expected cohorts [k, n, *] and keys [k] of one window of k >= 1 "
            f"rounds; got\n{listing}\n{_SHAPE_HINT}"
        )
    return lengths.pop()[0]


def checked(call: str, round: Any) -> Any:
    """Return the round with what it returns checked, and of strong types."""

    def run(theta: Any, state: Any, cohort: Any, key: Any) -> tuple[Any, jax.Array]:
        out = round(theta, state, cohort, key)
        if not isinstance(out, tuple) or len(out) != 2:
            raise FadError(
                f"{call}: round(theta, state, cohort, key) returned {describe(out)}; "
                "expected a pair (state, loss)."
            )
        new, loss = jax.tree.map(strong, out)
        if getattr(loss, "shape", None) != () or not jnp.issubdtype(
            loss.dtype, jnp.floating
        ):
            raise FadError(
                f"{call}: round(...) returned the loss {describe(loss)}; expected one "
                "real number, []. Reduce it (fad.mean over clients, jnp.mean at the "
                "server)."
            )
        _check_state(call, state, new)
        return new, loss

    return run


def _check_state(call: str, old: Any, new: Any) -> None:
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise FadError(
            f"{call}: round(...) must keep the structure of its state: "
            f"{jax.tree.structure(old)} became {jax.tree.structure(new)}."
        )
    before = jax.tree_util.tree_leaves_with_path(old)
    for (path, x), y in zip(before, jax.tree.leaves(new), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise FadError(
                f"{call}: round(...) must keep shapes and dtypes: "
                f"{path_str('state', path)} was {describe(x)} and became "
                f"{describe(y)}. Cast the new state to the old one's dtype."
            )


def check_fraction(call: str, name: str, x: Any) -> float:
    """Return a number in [0, 1]."""
    if not isinstance(x, int | float) or not 0 <= x <= 1:
        raise FadError(f"{call}: expected {name} in [0, 1], got {x!r}.")
    return float(x)


def check_positive(call: str, name: str, x: Any) -> float:
    """Return a positive, finite number."""
    if not isinstance(x, int | float) or not 0 < x < math.inf:
        raise FadError(f"{call}: expected {name} > 0 and finite, got {x!r}.")
    return float(x)


def check_count(call: str, name: str, x: Any, *, least: int) -> int:
    """Return an int of at least ``least``."""
    if isinstance(x, bool) or not hasattr(x, "__index__") or x < least:
        raise FadError(f"{call}: expected {name} to be an int >= {least}, got {x!r}.")
    return operator.index(x)


def check_key(call: str, key: Any) -> None:
    """Refuse what is no single random key."""
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", int)
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if shape is None or len(shape) != (0 if typed else 1):
        raise FadError(
            f"{call}: init(theta, state, key) got key={describe(key)}; expected one "
            "random key, such as jax.random.key(0), to draw perturbations from."
        )


def all_finite(tree: Any) -> jax.Array:
    """Say whether every real or complex number in the tree is finite: ``-> []``."""
    finite = [
        jnp.isfinite(jax.lax.stop_gradient(x)).all()
        for x in jax.tree.leaves(tree)
        if is_real(x)
    ]
    return jnp.stack(finite).all() if finite else jnp.array(True)
