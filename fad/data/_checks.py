"""Checks of the arguments of ``fad.data``: each names what it expected and got."""

import operator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fad._errors import DataError, describe


def seed_words(key: jax.Array) -> list[int]:
    """Turn one JAX key, typed or raw, into words that seed numpy."""
    if isinstance(key, jax.Array) and jax.numpy.issubdtype(
        key.dtype, jax.dtypes.prng_key
    ):
        key = jax.random.key_data(key)
    try:
        words = np.asarray(key)
    except jax.errors.TracerArrayConversionError as error:
        raise DataError(
            "fad.data.Federated.cohort(key=...): sampling runs on the host and needs a "
            "concrete key, but this one is traced. Call cohort outside jit, grad, vmap "
            "and scan and pass the cohort in."
        ) from error
    if words.dtype != np.uint32 or words.ndim != 1:
        raise DataError(
            "fad.data.Federated.cohort(key=...): expected one key, such as "
            f"jax.random.key(0); got {describe(key)}."
        )
    return words.tolist()


def positive(call: str, name: str, value: Any) -> int:
    """Return ``value`` as an int, or refuse it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise DataError(
            f"fad.data.{call}({name}=...): expected a positive integer; got {value!r}."
        )
    return number


def num_rows(call: str, argument: str, examples: Mapping[str, np.ndarray]) -> int:
    """Return the N that all arrays ``[N, *]`` share, or refuse them."""
    lengths = {x.shape[0] if x.ndim else 0 for x in examples.values()}
    if len(lengths) != 1 or 0 in lengths:
        given = ", ".join(f"{name!r}: {describe(x)}" for name, x in examples.items())
        raise DataError(
            f"fad.data.{call}({argument}=...): expected arrays [N, *] that share one "
            f"N, at least 1; got {{{given}}}."
        )
    return lengths.pop()


def check_offsets(offsets: Any, rows: int) -> np.ndarray:
    """Return offsets as int64 that rise from 0 to ``rows``, or refuse them."""
    offsets = np.asarray(offsets)
    call = "fad.data.Federated(offsets=...)"
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise DataError(
            f"{call}: expected integers [num_clients + 1] for at least one client; got "
            f"{describe(offsets)}."
        )
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != rows:
        raise DataError(
            f"{call}: expected to start at 0 and end at N={rows}, the number of "
            f"examples; got {offsets[0]} and {offsets[-1]}."
        )
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if falls.size:
        i = falls[0]
        raise DataError(
            f"{call}: expected never to fall, but offsets[{i}]={offsets[i]} is "
            f"followed by offsets[{i + 1}]={offsets[i + 1]}."
        )
    return offsets


def check_indices(client: int, part: Any, rows: int) -> np.ndarray:
    """Return one client's row numbers as int64, or refuse them."""
    part = np.asarray(part)
    call = f"fad.data.Federated.from_indices(indices[{client}])"
    if part.ndim != 1 or (part.size and part.dtype.kind not in "iu"):
        raise DataError(f"{call}: expected row numbers [size]; got {describe(part)}.")
    outside = part[(part < 0) | (part >= rows)]
    if outside.size:
        raise DataError(
            f"{call}: expected row numbers in 0..{rows - 1}; got {outside[0]}."
        )
    return part.astype(np.int64)
