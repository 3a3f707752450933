"""Checks of the arguments of ``fad.data``: each names what it expected and got."""

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

import jax
import numpy as np

from fad._errors import DataError, describe


def seed_words(call: str, key: jax.Array) -> list[int]:
    """Turn one JAX key, typed or raw, into words that seed numpy."""
    if isinstance(key, jax.Array) and jax.numpy.issubdtype(
        key.dtype, jax.dtypes.prng_key
    ):
        key = jax.random.key_data(key)
    try:
        words = np.asarray(key)
    except jax.errors.TracerArrayConversionError as error:
        raise DataError(
            f"fad.data.{call}(key=...): sampling runs on the host and needs a concrete "
            "key, but this one is traced. Call it outside jit, grad, vmap and scan and "
            "pass the cohort in."
        ) from error
    if words.dtype != np.uint32 or words.shape not in ((2,), (4,)):
        raise DataError(
            f"fad.data.{call}(key=...): expected one key, such as jax.random.key(0); "
            f"got {describe(key)}."
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


def arrays(
    call: str, argument: str, examples: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return examples as numpy arrays, copying none, or refuse masked ones."""
    for name, x in examples.items():
        if isinstance(x, np.ma.MaskedArray):
            raise DataError(
                f"fad.data.{call}({argument}=...): expected plain arrays, but {name!r} "
                "is a masked one, whose mask would be lost. Fill it in by "
                f"{name}.filled(value), or leave the masked rows or columns out."
            )
    return {name: np.asarray(x) for name, x in examples.items()}


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


def check_names(names: Any, clients: int) -> tuple[str, ...] | None:
    """Return the clients' names as a tuple of texts, or refuse them."""
    if names is None:
        return None
    call = "fad.data.Federated(names=...)"
    # A set has no order, so that which client has which name would be chance.
    ordered = isinstance(names, Iterable) and not isinstance(names, str | Set)
    given = tuple(names) if ordered else ()
    if not ordered or not all(isinstance(name, str) for name in given):
        raise DataError(f"{call}: expected one text per client; got {names!r}.")
    if len(given) != clients:
        raise DataError(
            f"{call}: expected one name per client, {clients}; got {len(given)}."
        )
    return tuple(map(str, given))


def natural(call: str, name: str, value: Any) -> int:
    """Return ``value`` as an int of at least 0, or refuse it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise DataError(
            f"fad.data.{call}({name}=...): expected an integer of at least 0; got "
            f"{value!r}."
        )
    return number


def real(call: str, name: str, value: Any) -> float:
    """Return ``value`` as a finite float of at least 0, or refuse it."""
    number = value if isinstance(value, int | float | np.number) else np.nan
    if not (number >= 0 and np.isfinite(number)):
        raise DataError(
            f"fad.data.{call}({name}=...): expected a finite number of at least 0; got "
            f"{value!r}."
        )
    return float(number)


def check_alpha(call: str, name: str, value: Any, parts: int) -> float:
    """Return the concentration of a Dirichlet law over ``parts``, or refuse it."""
    number = value if isinstance(value, int | float | np.number) else np.nan
    # Their sum is what the draw of the shares computes with.
    if not (number > 0 and np.isfinite(float(number) * parts)):
        raise DataError(
            f"fad.data.{call}({name}=...): expected a positive, finite concentration; "
            f"got {value!r}. For equal shares use fad.data.partition_iid."
        )
    return float(number)


def check_minimum(call: str, minimum: Any, clients: int, n: int) -> int:
    """Return how many examples each client gets at least, or refuse it."""
    minimum = natural(call, "minimum", minimum)
    if minimum * clients > n:
        raise DataError(
            f"fad.data.{call}(minimum={minimum}): {clients} clients with at least "
            f"{minimum} examples each need {minimum * clients}, but there are only "
            f"{n}. Ask for at most {n // clients}."
        )
    return minimum


def check_labels(call: str, name: str, labels: Any) -> np.ndarray:
    """Return one whole number or text per example, ``[N]``, or refuse them."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise DataError(
            f"fad.data.{call}({name}=...): expected one label per example, [N] with N "
            f"at least 1; got {describe(labels)}."
        )
    kinds = {type(label) for label in labels} if labels.dtype.kind == "O" else set()
    if labels.dtype.kind not in "iubSUO" or kinds - {int, str, bytes} or len(kinds) > 1:
        given = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"fad.data.{call}({name}=...): expected integers or texts, of one kind; "
            f"got {given or describe(labels)}. Numbers with fractions make no groups: "
            "round them or sort them into bins (np.digitize) first."
        )
    return labels


def check_clients(call: str, clients: Any, sizes: np.ndarray) -> np.ndarray:
    """Return distinct clients' numbers as int64, or refuse them."""
    chosen = np.asarray(clients)
    where = f"fad.data.{call}(clients=...)"
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise DataError(
            f"{where}: expected numbers of clients; got {describe(clients)}. For bools "
            "pass np.flatnonzero of them."
        )
    chosen = chosen.astype(np.int64)
    outside = chosen[(chosen < 0) | (chosen >= len(sizes))]
    if outside.size:
        raise DataError(
            f"{where}: expected clients in 0..{len(sizes) - 1}; got {outside[0]}."
        )
    values, counts = np.unique(chosen, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"{where}: client {values[counts > 1][0]} stands there more than once."
        )
    if not sizes[chosen].sum():
        raise DataError(
            f"{where}: these {chosen.size} clients hold no example. Take one that does."
        )
    return chosen
