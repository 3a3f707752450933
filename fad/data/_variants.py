"""Harder variants of a labelled set: noisy labels and unequal classes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import natural, positive
from fad.data._federated import Federated

_FLIP = 1

Labelled = TypeVar("Labelled", np.ndarray, Federated)


def flip_labels(
    data: Labelled,
    *,
    fraction: float | Sequence[float] | np.ndarray,
    classes: int | None = None,
    seed: int,
) -> Labelled:
    """Replace a fraction of the labels by another label, drawn uniformly.

    This is symmetric label noise. Exactly ``round(fraction * N)`` labels change, a
    half rounded to the even number, and each of them becomes one of the other labels.
    Rows keep their order, so the rows that changed are those where old and new labels
    differ: ``noisy != labels``, or the same of ``examples["y"]``.

    Args:
        data: Integer labels ``[N]``, or clients with integer labels ``y: [N]``.
        fraction: The share of labels to change, in [0, 1]; for clients either one for
            all or one each, ``[num_clients]``. It holds within each client.
        classes: The labels are 0..classes-1; None takes those that occur in data.
        seed: The seed of the choice. A client's noise depends on the seed and its own
            number, not on the other clients.

    Returns:
        The same kind of data with new labels; all else is shared with ``data``.

    Raises:
        DataError: If there are no integer labels [N], fewer than two different ones, a
            label outside 0..classes-1, or a fraction that is outside [0, 1] or of the
            wrong shape.

    Example:
        >>> labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
        >>> noisy = flip_labels(labels, fraction=0.25, seed=0)
        >>> int((noisy != labels).sum())
        2

    Source: B. van Rooyen et al., Learning with Symmetric Label Noise, 2015
    (https://arxiv.org/abs/1505.07634).
    """
    if isinstance(data, Federated):
        labels = _integers("flip_labels(data=...)", data.examples.get("y"))
        shares = _fractions(fraction, (data.num_clients,))
        flipped = _flip(labels, data.offsets, shares, classes, seed)
        return dataclasses.replace(data, examples={**data.examples, "y": flipped})
    labels = _integers("flip_labels(data=...)", data)
    offsets = np.array([0, len(labels)])
    return _flip(labels, offsets, _fractions(fraction, ()), classes, seed)


def imbalance(
    labels: np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    *,
    clip: bool = False,
    seed: int,
) -> np.ndarray:
    """Choose ``sizes[c]`` examples of every label ``c``.

    The rows of one label are chosen at random, apart from the other labels, and a
    smaller size chooses among those of a larger one.

    MNIST with FedNest's sizes, ``long_tail_sizes(6000, 10, ratio=0.01)``: label 0 has
    only 5,923 training examples, so 6,000 are refused and ``clip=True`` gives 14,818
    rows where the sizes add up to 14,895. The published code does the same without
    saying so, and takes the first rows of each label instead of random ones.

    Args:
        labels: Integer labels ``[N]`` in 0..C-1.
        sizes: How many examples of each label to keep, ``[C]``, at least 0.
        clip: Whether a label with fewer examples than asked keeps all it has; False
            refuses it.
        seed: The seed of the choice.

    Returns:
        The rows kept, sorted, ``[M]`` int64. Take them from every array:
        ``{name: x[rows] for name, x in examples.items()}``.

    Raises:
        DataError: If labels or sizes are not integers of one axis, a label has no
            size, nothing is kept, or a label has too few examples and clip is False.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 0, 1])
        >>> rows = imbalance(labels, [3, 1], seed=0)
        >>> np.bincount(labels[rows]).tolist()
        [3, 1]

    Source: D. Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and Compositional
    Optimization, 2022, loss function tuning on imbalanced MNIST
    (https://arxiv.org/abs/2205.02215).
    """
    labels = _integers("imbalance(labels=...)", labels)
    wanted = _sizes(sizes)
    _check_range("imbalance(labels=...)", labels, len(wanted), "sizes")
    held = np.bincount(labels, minlength=len(wanted))
    short = np.flatnonzero(held < wanted)
    if short.size and not clip:
        listed = "; ".join(f"label {c}: {held[c]} of {wanted[c]}" for c in short)
        raise DataError(
            "fad.data.imbalance(sizes=...): there are fewer examples than asked for "
            f"({listed}). Ask for at most as many, or pass clip=True to keep all that "
            "such a label has."
        )
    kept = np.minimum(held, wanted)
    if not kept.any():
        raise DataError(
            f"fad.data.imbalance(sizes=...): no example is kept; got "
            f"{wanted.tolist()} for labels that occur {held.tolist()} times."
        )
    rows = []
    root = np.random.SeedSequence(natural("imbalance", "seed", seed))
    for c, child in enumerate(root.spawn(len(kept))):
        order = np.random.default_rng(child).permutation(np.flatnonzero(labels == c))
        rows.append(order[: kept[c]])
    return np.sort(np.concatenate(rows))


def long_tail_sizes(largest: int, classes: int, *, ratio: float) -> np.ndarray:
    """Return class sizes that fall geometrically from ``largest`` by ``ratio`` in all.

    Class ``c`` gets ``ceil(largest * step ** c)`` with ``step = ratio ** (1 / (classes
    - 1))``, evaluated in double precision as written. That reproduces FedNest's sizes
    for MNIST, whose last is 61: ``6000 * step ** 9`` is 60 in exact arithmetic but
    lies a rounding error above it, and is rounded up.

    Args:
        largest: The size of class 0.
        classes: The number of classes.
        ratio: The last size over the first, in (0, 1].

    Returns:
        The sizes, ``[classes]`` int64.

    Raises:
        DataError: If a count is not a positive integer or ratio is not in (0, 1].

    Example:
        >>> sizes = long_tail_sizes(6000, 10, ratio=0.01)
        >>> sizes.tolist(), int(sizes.sum())
        ([6000, 3597, 2157, 1293, 775, 465, 279, 167, 101, 61], 14895)

    Source: D. Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and Compositional
    Optimization, 2022, loss function tuning on imbalanced MNIST
    (https://arxiv.org/abs/2205.02215).
    """
    call = "long_tail_sizes"
    largest = positive(call, "largest", largest)
    classes = positive(call, "classes", classes)
    if not isinstance(ratio, int | float | np.number) or not 0 < ratio <= 1:
        raise DataError(
            f"fad.data.{call}(ratio=...): expected the last size over the first, above "
            f"0 and at most 1; got {ratio!r}."
        )
    step = ratio ** (1 / max(classes - 1, 1))
    return np.array([math.ceil(largest * step**c) for c in range(classes)], np.int64)


def _flip(
    labels: np.ndarray,
    offsets: np.ndarray,
    shares: np.ndarray,
    classes: int | None,
    seed: int,
) -> np.ndarray:
    """Flip ``shares[i]`` of the labels from ``offsets[i]`` to ``offsets[i + 1]``."""
    values = _values(labels, classes)
    codes = np.searchsorted(values, labels)
    shares = np.broadcast_to(shares, len(offsets) - 1)
    # Not the streams of fad.data.synthetic, whose labels may be flipped by one seed.
    root = np.random.SeedSequence([natural("flip_labels", "seed", seed), _FLIP])
    for i, child in enumerate(root.spawn(len(shares))):
        size = int(offsets[i + 1] - offsets[i])
        count = round(float(shares[i]) * size)
        rng = np.random.default_rng(child)
        rows = offsets[i] + rng.choice(size, count, replace=False)
        # A move by 1..C-1 places around the circle of labels never ends where it began.
        codes[rows] += rng.integers(1, len(values), count)
    return values[codes % len(values)]


def _values(labels: np.ndarray, classes: int | None) -> np.ndarray:
    """Return the labels that may occur, sorted, in the dtype of ``labels``."""
    call = "flip_labels"
    if classes is None:
        values = np.unique(labels)
    else:
        classes = positive(call, "classes", classes)
        if classes - 1 > np.iinfo(labels.dtype).max:
            raise DataError(
                f"fad.data.{call}(classes={classes}): the labels are {labels.dtype} "
                "and cannot hold so many. Convert them to a wider integer first."
            )
        _check_range(f"{call}(data=...)", labels, classes, "classes")
        values = np.arange(classes).astype(labels.dtype)
    if len(values) < 2:
        raise DataError(
            f"fad.data.{call}(): a label can only be replaced by another one, but "
            f"there is only {values[0]}. Say how many there are with classes=."
        )
    return values


def _fractions(fraction: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the fractions as float64: one, or one of each client."""
    shares = np.asarray(fraction)
    call = "fad.data.flip_labels(fraction=...)"
    if shares.dtype.kind not in "iuf" or shares.shape not in ((), shape):
        each = f" or one per client, [{shape[0]}]" if shape else ""
        raise DataError(f"{call}: expected one number{each}; got {describe(shares)}.")
    outside = shares[~((shares >= 0) & (shares <= 1))]
    if outside.size:
        raise DataError(f"{call}: expected shares in [0, 1]; got {outside.flat[0]}.")
    return shares.astype(np.float64)


def _sizes(sizes: Any) -> np.ndarray:
    wanted = np.asarray(sizes)
    call = "fad.data.imbalance(sizes=...)"
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise DataError(
            f"{call}: expected one integer per label, [C]; got {describe(wanted)}."
        )
    if (wanted < 0).any():
        raise DataError(f"{call}: expected sizes of at least 0; got {wanted.min()}.")
    return wanted.astype(np.int64)


def _integers(call: str, labels: Any) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise DataError(
            f"fad.data.{call}: expected integer labels [N] with N at least 1 (in a "
            f"Federated, the array 'y'); got {describe(labels)}."
        )
    return array


def _check_range(call: str, labels: np.ndarray, count: int, bound: str) -> None:
    outside = labels[(labels < 0) | (labels >= count)]
    if outside.size:
        raise DataError(
            f"fad.data.{call}: expected labels in 0..{count - 1}, as {bound} has it; "
            f"got {outside[0]}."
        )
