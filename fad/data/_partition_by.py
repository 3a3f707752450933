"""Clients by a column: whoever shares its value is one client."""

import numpy as np

from fad._errors import DataError
from fad.data._checks import check_labels
from fad.data._partition import Partition, by_owner


def partition_by(values: np.ndarray) -> tuple[Partition, tuple[str, ...]]:
    """Make one client of every distinct value, such as a writer or a hospital.

    Args:
        values: The value of every example, ``[N]`` integers, texts or bytes.

    Returns:
        The pair (parts, names): one sorted index array per client, and the clients'
        names, in the order of the values. Bytes are read as UTF-8.

    Raises:
        DataError: If values is not one axis of at least one integer or text, or two
            of them would give their clients one name.

    Example:
        >>> parts, names = partition_by(np.array(["Romeo", "Juliet", "Romeo"]))
        >>> [part.tolist() for part in parts], names
        ([[1], [0, 2]], ('Juliet', 'Romeo'))
    """
    values = check_labels("partition_by", "values", values)
    distinct, codes = np.unique(values, return_inverse=True)
    named: dict[str, int | str | bytes] = {}
    for value in distinct.tolist():
        name = _name(value)
        if name in named:
            raise DataError(
                f"fad.data.partition_by(values=...): {named[name]!r} and {value!r} are "
                f"two values, but both read {name!r} as a name. Bytes that are not "
                "UTF-8 are named by their escapes: replace one of the two."
            )
        named[name] = value
    return by_owner(codes, len(distinct)), tuple(named)


def _name(value: int | str | bytes) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)
