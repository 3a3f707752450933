"""A short text on clients: their sizes, their labels, their missing values."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fad.data._label_counts import LabelCounts, label_counts

# Rows looked at together, so that no copy of a large array is made.
_BLOCK = 1 << 14
_COLUMNS, _CLIENTS = 10, 5


def describe(
    examples: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    *,
    label: str = "y",
    names: Sequence[str] | None = None,
) -> str:
    """Return the text of ``Federated.describe``: a line on sizes, two on labels."""
    lines = [_sizes(np.diff(offsets))]
    counts = label_counts("Federated.describe", examples, offsets, label)
    if counts is not None:
        lines += _labels(counts)
    for name, x in examples.items():
        if x.dtype.kind in "fc":
            lines += _missing(name, x, offsets, names)
    return "\n".join(lines)


def _sizes(sizes: np.ndarray) -> str:
    empty = np.count_nonzero(sizes == 0)
    return (
        f"{len(sizes)} clients{f' ({empty} empty)' if empty else ''}, {sizes.sum()} "
        f"examples; sizes min {sizes.min()}, median {_short(np.median(sizes))}, mean "
        f"{_short(sizes.mean())}, max {sizes.max()}"
    )


def _short(number: np.floating) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _labels(counts: LabelCounts) -> Iterator[str]:
    sizes = np.bincount(counts.client, counts.count)
    shares = counts.count / sizes[counts.client]
    clients = int(np.count_nonzero(sizes))
    within = (shares * np.log2(1 / shares)).sum() / clients
    pooled = np.bincount(counts.label, counts.count) / sizes.sum()
    overall = (pooled * np.log2(1 / pooled)).sum()
    yield f"label entropy {within:.2f} bits within clients, {overall:.2f} overall"
    if clients > 1:
        distance = _distance(counts.label, shares, clients)
        yield (
            f"label distance {distance:.2f} between two clients (mean total variation, "
            "0 to 1)"
        )


def _distance(label: np.ndarray, shares: np.ndarray, clients: int) -> float:
    """Return the mean over all pairs of half the sum of |difference of shares|.

    For one label, sorted so that the largest share comes first, the share at place t is
    subtracted from t larger ones and has clients - 1 - t smaller ones subtracted from
    it. Clients without the label come last and add nothing. So no pair is visited.
    """
    order = np.lexsort((-shares, label))
    starts = np.cumsum(np.bincount(label)) - np.bincount(label)
    place = np.arange(len(label)) - starts[label[order]]
    total = ((clients - 1 - 2 * place) * shares[order]).sum()
    return total / (clients * (clients - 1))


def _missing(
    name: str, x: np.ndarray, offsets: np.ndarray, names: Sequence[str] | None
) -> Iterator[str]:
    """Yield a line on each of the first columns with NaN, and one on the others."""
    blocks = (x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))
    columns = np.argwhere(sum(np.isnan(block).sum(axis=0) for block in blocks))
    for column in columns[:_COLUMNS]:
        place = (slice(None), *column)
        rows = np.flatnonzero(np.isnan(x[place]))
        clients, counts = np.unique(
            np.searchsorted(offsets, rows, side="right") - 1, return_counts=True
        )
        held = [
            f"{names[client] if names else f'client {client}'} ({count})"
            for client, count in zip(clients[:_CLIENTS], counts, strict=False)
        ]
        if len(clients) > _CLIENTS:
            held.append(f"{len(clients) - _CLIENTS} more clients")
        where = f"[:, {', '.join(map(str, column))}]" if column.size else ""
        yield f"NaN in {name}{where}: {len(rows)} rows, at {', '.join(held)}"
    if len(columns) > _COLUMNS:
        yield f"NaN in {len(columns) - _COLUMNS} more columns of {name}"
