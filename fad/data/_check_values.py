"""Values that no task can learn from: where they are, by array, column and client."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fad._errors import DataError
from fad.data._federated import Federated

# Rows looked at together, so that no copy of a large array is made.
_BLOCK = 1 << 14
_NAMED = 5


class _Rule(NamedTuple):
    """Which numbers are usable: what was expected, what came and the likely fix."""

    usable: Callable[[np.ndarray], np.ndarray]
    expected: str
    came: str
    fix: str


_FINITE = _Rule(
    np.isfinite,
    "finite numbers",
    "NaN or infinity",
    "Fill them in (the column's mean over the clients, for one) or leave the rows or "
    "the columns out.",
)


def check_values(
    argument: str, data: Federated, *, call: str = "Task", clients: bool = False
) -> None:
    """Refuse NaN, infinity and integers that a device would wrap in a task's arrays.

    Args:
        argument: What is looked at, for messages.
        data: The rows.
        call: Whose argument it is.
        clients: Whether to name the clients; False where the rows are the server's.
    """
    for name, x in data.examples.items():
        rule = _rule(x.dtype)
        if rule is None:
            continue
        rows, columns = _gaps(x, rule.usable)
        if not rows.size:
            continue
        at = f", at the clients {_listed(_held(data, rows))}" if clients else ""
        where = "" if x.ndim == 1 else f", in the columns {_listed(columns)}"
        raise DataError(
            f"fad.data.{call}({argument}=...): expected {rule.expected}, but {name!r} "
            f"has {rule.came} in {rows.size} of {len(x)} rows{where}{at}. {rule.fix}"
        )


def _held(data: Federated, rows: np.ndarray) -> list[str]:
    """Say which clients hold the rows, and how many of them."""
    owners = np.searchsorted(data.offsets, rows, side="right") - 1
    numbers, counts = np.unique(owners, return_counts=True)
    names = [data.names[i] if data.names else f"{i}" for i in numbers]
    return [f"{k} ({n} of them)" for k, n in zip(names, counts, strict=True)]


def _rule(dtype: np.dtype) -> _Rule | None:
    """Return what holds for the numbers of a dtype; None where all are usable."""
    # Unlike numpy, JAX counts bfloat16 and the types of 8 bits among the real numbers.
    if jax.numpy.issubdtype(dtype, np.inexact):
        return _FINITE
    if dtype.kind not in "iu" or jax.dtypes.canonicalize_dtype(dtype) == dtype:
        return None
    bounds = np.iinfo(f"{dtype.kind}4")
    return _Rule(
        lambda x: (x >= bounds.min) & (x <= bounds.max),
        "integers of 32 bits, as JAX keeps no others without jax_enable_x64",
        f"some outside {bounds.min}..{bounds.max}",
        "Number them from 0 (np.unique with return_inverse=True), leave the array out, "
        "or enable x64.",
    )


def _gaps(
    x: np.ndarray, usable: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, list[str]]:
    """Return the rows and the columns that are not usable throughout."""
    rows, columns = [np.zeros(0, np.int64)], np.zeros(x.shape[1:], bool)
    for start in range(0, len(x), _BLOCK):
        bad = ~usable(x[start : start + _BLOCK])
        columns |= bad.any(axis=0)
        rows.append(start + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)))
    return np.concatenate(rows), [
        ", ".join(map(str, i)) if len(i) == 1 else str(tuple(map(int, i)))
        for i in np.argwhere(columns)
    ]


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more
