"""Columns of texts and of arrays of varying shape, as plain arrays and back.

Numpy writes object arrays by pickle alone, which can run code when it is read.
"""

import numpy as np


def flatten_column(column: np.ndarray) -> dict[str, np.ndarray]:
    """Turn a column into plain arrays by role; nested texts are flattened again.

    A plain column is its own ``"values"``. Texts become their bytes on end and
    ``"lengths"``; arrays become their elements on end and their ``"shapes"``.

    Args:
        column: ``[N, *]`` of any dtype but object, or ``[N]`` objects that are all
            bytes, or all arrays of one dtype and number of axes.

    Returns:
        The plain arrays.

    Raises:
        TypeError: If the objects are of another or of several kinds.

    Example:
        >>> flatten_column(np.array([b"ab", b"c"], object))["lengths"].tolist()
        [2, 1]
    """
    if column.dtype != object:
        return {"values": column}
    kinds = {_kind(x) for x in column.reshape(-1)}
    if kinds <= {"bytes"}:
        texts = column.reshape(-1).tolist()
        lengths = np.array([len(text) for text in texts], np.int64)
        values = np.frombuffer(b"".join(texts), np.uint8)
        return {"values": values, "lengths": lengths.reshape(column.shape)}
    if len(kinds) > 1 or kinds & {"other"} or column.ndim > 1:
        raise TypeError(f"expected bytes or arrays of one kind; got {sorted(kinds)}")
    inner = flatten_column(np.concatenate([x.reshape(-1) for x in column]))
    shapes = np.array([x.shape for x in column], np.int64)
    return {"shapes": shapes, **{f"inner.{role}": x for role, x in inner.items()}}


def restore_column(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Turn what ``flatten_column`` made back into the column.

    Args:
        arrays: The plain arrays by role.

    Returns:
        The column.

    Example:
        >>> restore_column(flatten_column(np.array([b"ab", b"c"], object))).tolist()
        [b'ab', b'c']
    """
    if "shapes" in arrays:
        inner = {
            role.removeprefix("inner."): x
            for role, x in arrays.items()
            if role != "shapes"
        }
        flat, shapes = restore_column(inner), arrays["shapes"]
        stops = np.cumsum(shapes.prod(axis=1))
        column = np.empty(len(shapes), object)
        for i, piece in enumerate(np.split(flat, stops[:-1])):
            column[i] = piece.reshape(shapes[i]).copy()
        return column
    if "lengths" not in arrays:
        return arrays["values"]
    text, lengths = arrays["values"].tobytes(), arrays["lengths"]
    stops = np.cumsum(lengths.reshape(-1)).tolist()
    column = np.empty(lengths.size, object)
    column[:] = [text[i:j] for i, j in zip([0, *stops], stops, strict=False)]
    return column.reshape(lengths.shape)


def _kind(x: object) -> str:
    if isinstance(x, np.ndarray):
        return f"{x.dtype}, {x.ndim} axes"
    return "bytes" if isinstance(x, bytes) else "other"
