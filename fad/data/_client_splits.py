"""Train, validation and test of every client."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fad._errors import DataError
from fad.data._checks import check_labels, natural

_CALL = "fad.data.Federated.split"

Examples = dict[str, np.ndarray]


def split(
    examples: Examples,
    offsets: np.ndarray,
    fractions: Sequence[float],
    *,
    seed: int,
    by: str,
    stratify: str | None,
) -> list[tuple[Examples, np.ndarray]]:
    """Return the examples and offsets of every part of ``Federated.split``."""
    shares = _check_fractions(fractions)
    seed = natural("Federated.split", "seed", seed)
    if by not in ("random", "order"):
        raise DataError(f"{_CALL}(by={by!r}): expected 'random' or 'order'.")
    if by == "order" and stratify is not None:
        raise DataError(
            f"{_CALL}(stratify={stratify!r}, by='order'): by order, the place of a row "
            "decides where it goes, not its label. Leave one of the two out."
        )
    labels = None if stratify is None else _labels(stratify, examples)
    counts = _counts(np.diff(offsets), shares)
    empty = np.flatnonzero(counts.sum(axis=0) == 0)
    if empty.size:
        raise DataError(
            f"{_CALL}(*fractions): no client has examples enough for the share "
            f"{shares[empty[0]]:g}; the largest has {np.diff(offsets).max()}. Raise "
            "the share, or hold out whole clients by Federated.take."
        )
    if by == "order":
        parts = _cut(_owner(counts), counts)
    else:
        parts = _drawn(counts, seed, labels)
    result = []
    for part in range(len(shares)):
        rows = np.flatnonzero(parts == part)
        held = {name: x[rows] for name, x in examples.items()}
        result.append((held, np.concatenate([[0], np.cumsum(counts[:, part])])))
    return result


def _check_fractions(fractions: Sequence[Any]) -> np.ndarray:
    """Return the shares of the parts, or refuse them."""
    real = all(isinstance(f, float | np.floating) and 0 < f < 1 for f in fractions)
    if not real or not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
        given = ", ".join(f"{f!r}" for f in fractions)
        raise DataError(
            f"{_CALL}(*fractions): expected shares between 0 and 1 that sum to 1, such "
            f"as 0.8, 0.1, 0.1; got {given or 'none'}."
        )
    return np.array(fractions, np.float64)


def _labels(name: str, examples: dict[str, np.ndarray]) -> np.ndarray:
    """Return the labels by which a split is stratified as codes ``[N]``."""
    labels = examples.get(name)
    if labels is None:
        raise DataError(
            f"{_CALL}(stratify={name!r}): there is no such array; expected one of "
            f"{', '.join(examples)}."
        )
    labels = check_labels("Federated.split", "stratify", labels)
    return np.unique(labels, return_inverse=True)[1]


def _counts(sizes: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Divide every size by largest remainder: ``[n], [parts] -> [n, parts]``.

    Of equal remainders the earlier part's is served first.
    """
    # Rounded, so that 0.7 of 10 is 7 and equal remainders are equal.
    exact = np.round(sizes[:, None] * fractions, 9)
    counts = np.floor(exact).astype(np.int64)
    ranks = np.argsort(np.argsort(counts - exact, axis=1, kind="stable"), axis=1)
    return counts + (ranks < (sizes - counts.sum(axis=1))[:, None])


def _owner(counts: np.ndarray) -> np.ndarray:
    """Return the client of every row: ``[num_clients, parts] -> [N]``."""
    return np.repeat(np.arange(len(counts)), counts.sum(axis=1))


def _drawn(counts: np.ndarray, seed: int, labels: np.ndarray | None) -> np.ndarray:
    """Draw the part of every row: ``[N]``.

    Args:
        counts: How many rows of each client go to each part, ``[num_clients, parts]``.
        seed: The seed of the draw.
        labels: Codes ``[N]`` of which each part gets its share; None to ignore them.
    """
    owner = _owner(counts)
    rng = np.random.default_rng(seed)
    keys = [rng.permutation(len(owner)), owner]
    if labels is not None:
        keys.insert(1, labels)
    # By client, then by label, then at random.
    order = np.lexsort(keys)
    parts = np.empty(len(owner), np.int64)
    parts[order] = (
        _cut(owner, counts) if labels is None else _spread(owner, counts, rng)
    )
    return parts


def _cut(owner: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Give the first rows of a client to the first part, and so on."""
    ends = np.cumsum(counts, axis=1)[:, :-1]
    return (_rank(owner)[:, None] >= ends[owner]).sum(axis=1)


def _spread(
    owner: np.ndarray, counts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Spread each part evenly over a client's rows, the first taking what is left.

    From the last part on, each gets of any run of neighbours its share of those that
    are left, rounded up or down. Of P parts, none so is as many as P - 1 rows away from
    its share of the whole run: what the roundings of P - 1 parts add up to.
    """
    parts = np.zeros(len(owner), np.int64)
    for part in range(counts.shape[1] - 1, 0, -1):
        left = np.flatnonzero(parts == 0)
        held = np.bincount(owner[left], minlength=len(counts))
        start = rng.integers(0, np.maximum(held, 1))
        client, rank = owner[left], _rank(owner[left])
        before = (rank * counts[client, part] + start[client]) // held[client]
        after = ((rank + 1) * counts[client, part] + start[client]) // held[client]
        parts[left[after > before]] = part
    return parts


def _rank(owner: np.ndarray) -> np.ndarray:
    """Number equal neighbours from 0: ``[N] -> [N]``, for sorted values."""
    firsts = np.searchsorted(owner, owner, side="left")
    return np.arange(len(owner)) - firsts
