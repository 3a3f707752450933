"""Checks of the arguments of ``fad.data.Quadratics``."""

from typing import Any

import jax
import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import natural
from fad.data._quadratic_loss import Quadratic


def check_clients(clients: Quadratic) -> None:
    """Refuse stacked clients whose shapes, symmetry or curvature do not fit."""
    call = "fad.data.Quadratics(clients"
    if clients.C.ndim != 3 or 0 in clients.C.shape:
        raise DataError(
            f"{call}.C): expected the shape [n, p, q] with no axis of length 0; got "
            f"{describe(clients.C)}."
        )
    n, p, q = clients.C.shape
    ends = Quadratic((p, p), (p, q), (p,), (p, p), (p, q), (p,), (q, q), (q,))
    for name, x, end in zip(clients._fields, clients, ends, strict=True):
        if x.shape != (n, *end):
            raise DataError(
                f"{call}.{name}): expected the shape {(n, *end)}, as C has n={n}, p={p}"
                f" and q={q}; got {x.shape}."
            )
        if not np.isfinite(x).all():
            raise DataError(f"{call}.{name}): expected finite numbers.")
        if name in "AFH" and not np.allclose(x, x.swapaxes(1, 2)):
            raise DataError(
                f"{call}.{name}): expected symmetric matrices. Pass "
                f"({name} + {name}') / 2, which gives the same loss."
            )
    lowest = np.linalg.eigvalsh(clients.A).min()
    if lowest <= 0:
        raise DataError(
            f"{call}.A): expected positive definite matrices, so that every client's "
            f"lower loss has one minimum; got an eigenvalue {lowest:g}."
        )


def check_vector(call: str, name: str, value: Any, size: int) -> np.ndarray:
    """Return ``value`` as a float64 vector ``[size]``, or refuse it."""
    where = f"fad.data.Quadratics.{call}({name}=...)"
    try:
        vector = np.asarray(value, np.float64)
    except jax.errors.TracerArrayConversionError as error:
        raise DataError(
            f"{where}: the exact answers are computed on the host from concrete "
            "numbers, but this is traced. Call it outside jit, grad, vmap and scan."
        ) from error
    if vector.shape != (size,):
        raise DataError(f"{where}: expected a vector [{size}]; got {describe(value)}.")
    return vector


def check_count(call: str, name: str, value: Any) -> int:
    """Return ``value`` as an int that is at least 0, or refuse it."""
    return natural(f"Quadratics.{call}", name, value)


def check_step_size(call: str, value: Any) -> float:
    """Return ``value`` as a float that is positive and finite, or refuse it."""
    if not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise DataError(
            f"fad.data.Quadratics.{call}(lr=...): expected a positive, finite step "
            f"size; got {value!r}."
        )
    return float(value)


def check_heterogeneity(call: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1."""
    if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise DataError(
            f"fad.data.{call}(heterogeneity=...): expected a number from 0, equal "
            f"clients, to 1, independent ones; got {value!r}."
        )
