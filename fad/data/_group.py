"""Clients of their own: by a column, or by the split they stand in."""

from collections.abc import Mapping

import numpy as np

from fad._errors import DataError
from fad.data._checks import check_labels
from fad.data._federated import Federated
from fad.data._partition_by import partition_by


def group_by(examples: Mapping[str, np.ndarray], column: str) -> Federated:
    """Make one client of every distinct value of a column, and drop the column.

    Clients are sorted by the value and named by it; each keeps its examples in their
    order.

    Args:
        examples: Named arrays ``[N, *]``.
        column: The column, ``[N]`` integers or texts.

    Returns:
        The clients.

    Raises:
        DataError: If there is no such column, or its values make no groups.

    Example:
        >>> clients = group_by(
        ...     {"x": np.arange(3), "writer": np.array([7, 2, 7])}, "writer"
        ... )
        >>> clients.names, clients.client(1)
        (('2', '7'), {'x': array([0, 2])})
    """
    if column not in examples:
        raise DataError(
            f"fad.data.group_by(column={column!r}): there is no such column. The "
            f"columns are {', '.join(examples)}."
        )
    others = {name: x for name, x in examples.items() if name != column}
    if not others:
        raise DataError(
            f"fad.data.group_by(column={column!r}): it is the only column, so the "
            "clients would hold nothing."
        )
    check_labels("group_by", "column", examples[column])
    parts, names = partition_by(examples[column])
    return Federated.from_indices(others, parts, names=names)
