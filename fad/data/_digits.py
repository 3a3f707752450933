"""Scikit-learn's handwritten digits: real data that needs no download."""

import numpy as np

from fad._errors import DataError

Examples = dict[str, np.ndarray]


def load_digits(
    *, test_fraction: float = 0.2, seed: int = 0
) -> tuple[Examples, Examples]:
    """Load the 1,797 handwritten digits of 8 by 8 pixels that scikit-learn ships.

    Shapes: ``x: float32 [N, 64]`` in [0, 1] and ``y: int32 [N]`` in 0..9.
    The split depends on the arguments alone and keeps the share of every label.

    Args:
        test_fraction: The share of every label that goes to the test set, in (0, 1).
        seed: The seed of the split.

    Returns:
        The pair (train, test) of dicts with the arrays "x" and "y".

    Raises:
        DataError: If scikit-learn is missing or test_fraction is not in (0, 1).

    Example:
        >>> train, test = load_digits()
        >>> train["x"].shape, test["x"].shape
        ((1438, 64), (359, 64))

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
    UCI Machine Learning Repository, 1998.
    """
    if not 0 < test_fraction < 1:
        raise DataError(
            "fad.data.load_digits(test_fraction=...): expected a number between 0 and "
            f"1, both excluded; got {test_fraction!r}."
        )
    x, y = _read_digits()
    in_test = _stratified(y, test_fraction, seed)
    train = {"x": x[~in_test], "y": y[~in_test]}
    return train, {"x": x[in_test], "y": y[in_test]}


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            "fad.data.load_digits(): the digits come with scikit-learn, which is not "
            'installed. Install it with: pip install "fad[experiments]"'
        ) from error
    x, y = datasets.load_digits(return_X_y=True)
    # Pixels count the dark points in a 4 by 4 block: 0..16.
    return np.asarray(x / 16, np.float32), np.asarray(y, np.int32)


def _stratified(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Mark ``fraction`` of every label: ``[N] -> bool [N]``."""
    rng = np.random.default_rng(seed)
    marked = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        marked[rows[: round(fraction * len(rows))]] = True
    return marked
