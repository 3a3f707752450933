"""The arguments of solvers, checked by path."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import FadError, describe, nearest, path_str
from fad._strong import strong
from fad.local import Batches
from fad.placement import AtClients


def check_lr(call: str, name: str, lr: Any) -> Any:
    """Return a step size, a positive number or a real scalar array, as it is.

    A number stays one, so that it takes the precision of what it multiplies.
    """
    if isinstance(lr, int | float | np.number):
        fits = not isinstance(lr, bool) and 0 < lr < math.inf
    else:
        real = jnp.issubdtype(getattr(lr, "dtype", bool), jnp.floating)
        fits = real and jnp.shape(lr) == ()
    if fits:
        return lr
    raise FadError(
        f"{call}: {name} is {describe(lr)}; expected a positive, finite number or a "
        "real scalar array. Pass one step size, such as 0.1."
    )


def check_passes(call: str, passes: Any) -> int:
    """Return a number of passes, an int of at least 1."""
    if isinstance(passes, bool) or not hasattr(passes, "__index__") or passes < 1:
        raise FadError(f"{call}: expected passes to be an int >= 1, got {passes!r}.")
    return operator.index(passes)


def check_choice(call: str, name: str, value: Any, known: Iterable[str]) -> Any:
    """Return one of the known names."""
    if value not in known:
        raise FadError(
            f"{call}: unknown {name} {value!r}. {nearest(str(value), known, name)}"
        )
    return value


def check_y(call: str, y: Any) -> Any:
    """Return y as arrays; refuse what cannot be minimised over."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        dtype = getattr(leaf, "dtype", type(leaf))
        if dtype is not float and not jnp.issubdtype(dtype, jnp.floating):
            raise FadError(
                f"{call}: {path_str('y', path)} is {describe(leaf)}; expected real "
                "numbers to minimise over. Let the loss close over the others."
            )
    return jax.tree.map(strong, y)


def check_like_y(call: str, name: str, x: Any, y: Any) -> Any:
    """Return x as arrays; refuse another structure, shape or dtype than y's."""
    if jax.tree.structure(x) != jax.tree.structure(y):
        raise FadError(
            f"{call}: {name} has the structure {jax.tree.structure(x)}; expected that "
            f"of y, {jax.tree.structure(y)}. Pass a gradient by y."
        )
    x = jax.tree.map(strong, x)
    named = jax.tree_util.tree_leaves_with_path(x)
    for (path, a), b in zip(named, jax.tree.leaves(y), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise FadError(
                f"{call}: {path_str(name, path)} is {describe(a)}, but "
                f"{path_str('y', path)} is {describe(b)}. Pass a gradient by y."
            )
    return x


def check_cohort(call: str, cohort: Any) -> AtClients[Batches]:
    """Return the cohort; refuse what is no client value of batches."""
    inside = cohort.unsafe_gather() if isinstance(cohort, AtClients) else None
    if not isinstance(inside, Batches):
        came = repr(cohort) if isinstance(cohort, AtClients) else describe(cohort)
        raise FadError(
            f"{call}: cohort is {came}; expected fad.AtClients(fad.local.Batches(...))."
            " Draw one with fad.data, or stack the clients' batches by hand."
        )
    return cohort
