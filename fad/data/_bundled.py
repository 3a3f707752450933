"""Scikit-learn's own sets: real data that needs no download."""

from typing import Any

import numpy as np

from fad._errors import DataError

Examples = dict[str, np.ndarray]

BUNDLED = ("digits", "breast_cancer", "diabetes")
_TEST_SHARE = 0.2


def read_bundled(name: str) -> dict[str, Examples]:
    """Return the splits "train" and "test" of one of scikit-learn's sets.

    A fifth of the rows of every label, or of all rows where there are no labels, is
    the test set. The choice never changes.

    Args:
        name: One of ``BUNDLED``.

    Returns:
        The splits.

    Raises:
        DataError: If scikit-learn is missing.
    """
    examples, strata = _read(name)
    in_test = _marked(strata)
    return {
        "train": {key: x[~in_test] for key, x in examples.items()},
        "test": {key: x[in_test] for key, x in examples.items()},
    }


def _read(name: str) -> tuple[Examples, np.ndarray]:
    """Return the examples and what to keep the shares of."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f"fad.data.load(name={name!r}): this set comes with scikit-learn, which is "
            'not installed. Install it with: pip install "fad[experiments]"'
        ) from error
    if name == "diabetes":
        # As measured: scikit-learn would scale by the test rows too.
        x, target = _arrays(datasets.load_diabetes(return_X_y=True, scaled=False))
        return {"x": x, "target": target}, np.zeros(len(x), np.int64)
    if name == "breast_cancer":
        x, label = _arrays(datasets.load_breast_cancer(return_X_y=True))
        return {"x": x, "label": label.astype(np.int64)}, label
    x, label = _arrays(datasets.load_digits(return_X_y=True))
    image = x.astype(np.uint8).reshape(-1, 8, 8, 1)
    return {"image": image, "label": label.astype(np.int64)}, label


def _arrays(pair: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = pair
    return np.asarray(x), np.asarray(y)


def _marked(strata: np.ndarray) -> np.ndarray:
    """Mark the test rows: ``[N] -> bool [N]``."""
    rng = np.random.default_rng(0)
    marked = np.zeros(len(strata), bool)
    for value in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == value))
        marked[rows[: round(_TEST_SHARE * len(rows))]] = True
    return marked
