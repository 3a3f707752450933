"""How many examples of each label every client holds."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fad._errors import DataError, describe


@dataclasses.dataclass(frozen=True)
class LabelCounts:
    """The cells of the table clients × labels that are not 0.

    Attributes:
        values: The labels, rising: ``[labels]``.
        client: The client of each cell, rising: ``[cells]``.
        label: The number of its label in ``values``, rising in a client: ``[cells]``.
        count: The number of examples in it: ``[cells]``.
    """

    values: np.ndarray
    client: np.ndarray
    label: np.ndarray
    count: np.ndarray


def label_counts(
    call: str, examples: Mapping[str, np.ndarray], offsets: np.ndarray, label: str
) -> LabelCounts | None:
    """Count the labels of every client.

    Args:
        call: Who asks, for the error.
        examples: Named arrays ``[N, *]`` sorted by client.
        offsets: Where each client starts, ``[num_clients + 1]``.
        label: The name of the labels.

    Returns:
        The counts; None where the usual name "y" does not stand for one integer or
        text per example.

    Raises:
        DataError: If another name does not.
    """
    y = examples.get(label)
    if y is None or y.ndim != 1 or y.dtype.kind not in "iubSU":
        if label == "y":
            return None
        raise DataError(
            f"fad.data.{call}(label={label!r}): expected the name of an array of one "
            "integer or text per example, [N]; got "
            f"{'no such name' if y is None else describe(y)}. There are "
            f"{', '.join(map(repr, examples))}."
        )
    values, codes = np.unique(y, return_inverse=True)
    client = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    cells, count = np.unique(client * len(values) + codes, return_counts=True)
    return LabelCounts(values, *np.divmod(cells, len(values)), count)
