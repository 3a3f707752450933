"""The arguments of decoders."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError, describe
from fad.estimators._checks import check_count, check_positive


def check_shape(call: str, rows: Any, size: Any) -> tuple[int, int]:
    """Return the shape of a sketch, ``1 <= rows <= size``."""
    rows = check_count(call, "rows", rows, least=1)
    size = check_count(call, "size", size, least=1)
    if rows > size:
        raise FadError(
            f"{call}: rows={rows} is above size={size}; a sketch is no longer than "
            "what it is of. Take at most as many rows, or fad.decoders.identity()."
        )
    return rows, size


def check_seed(call: str, seed: Any) -> jax.Array:
    """Return a seed as 32 bits."""
    dtype = jnp.result_type(seed) if not isinstance(seed, bool) else jnp.bool
    if jnp.ndim(seed) != 0 or not jnp.issubdtype(dtype, jnp.integer):
        raise FadError(
            f"{call}: seed is {describe(seed)}; expected an int, or an array [] of one."
        )
    if isinstance(seed, int):
        seed = seed % 2**32
    return jnp.asarray(seed, jnp.uint32)


def check_step(
    call: str, step: Any, largest: float | None, *, accelerated: bool = False
) -> None:
    """Refuse a step outside ``(0, 2 / largest)``, or ``(0, 1 / largest]``."""
    if largest is not None:
        check_positive(call, "the largest eigenvalue", float(largest))
    ends = math.inf if largest is None else (1 if accelerated else 2) / largest
    inside = isinstance(step, int | float) and 0 < step < math.inf
    if inside and (step <= ends if accelerated else step < ends):
        return
    shown = f"(0, {ends:.6g}{']' if accelerated else ')'}"
    if largest is not None:
        shown += f", up to {1 if accelerated else 2} / {largest:.6g}, over the largest "
        shown += "eigenvalue of the Hessian"
    raise FadError(
        f"{call}: step={step!r} is outside {shown}. Take a shorter step: beyond it the "
        "iteration need not converge."
    )


def check_tolerance(call: str, tolerance: Any) -> float:
    """Return a tolerance of at least zero."""
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise FadError(f"{call}: expected tolerance in [0, 1), got {tolerance!r}.")
    return float(tolerance)
