"""A split's records, decoded by tensorflow-datasets without TensorFlow."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fad._errors import DataError
from fad.data._prepare import unreadable

Examples = dict[str, np.ndarray]

# One read per block: one per example is several times slower.
_BLOCK = 4096
_METADATA = "dataset_info.json and features.json"


def decode_split(
    name: str, data_dir: Path, folder: Path, split: str, rows: int
) -> Examples:
    """Read and decode a whole split: ``[N, *]`` arrays by feature.

    Features keep their names, nested ones joined by "/", and their dtypes. Texts and
    features of varying shape become object arrays of bytes and of arrays.

    Args:
        name: The set, for messages.
        data_dir: The folder of all sets, for messages.
        folder: The prepared set, in the format array_record.
        split: The split.
        rows: The number of examples that its metadata states.

    Returns:
        The arrays.

    Raises:
        DataError: If a package is missing, the metadata or records are damaged, or
            records are not as many or not as shaped as the metadata says.
    """
    what = f"the metadata in {folder} ({_METADATA})"
    with _explained(name, data_dir, folder, what):
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(str(folder))
        infos = _infos(name, builder.info.features)
    with _explained(name, data_dir, folder, f"the files of {split!r} in {folder}"):
        files = builder.info.splits[split].filepaths if rows else ()
        _check_count(name, folder, split, rows, sum(map(_num_records, files)))
        columns = {feature: _column(info, rows) for feature, info in infos.items()}
        source = builder.as_data_source(split) if rows else None
        for start in range(0, rows, _BLOCK):
            block = range(start, min(start + _BLOCK, rows))
            assert source is not None
            for i, record in zip(block, source.__getitems__(block), strict=True):
                _store(name, columns, infos, i, _flat(record))
        return columns


@contextlib.contextmanager
def _explained(name: str, data_dir: Path, folder: Path, what: str) -> Iterator[None]:
    """Turn what reading raises into a DataError that says what to do."""
    try:
        yield
    except (DataError, MemoryError):  # Memory: preparing again would not help.
        raise
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        if "'tensorflow'" in reason:
            # Tensorflow-datasets takes a dtype that it does not know for TensorFlow's.
            what += ", which name a dtype that is damaged or needs TensorFlow,"
            raise unreadable(name, data_dir, folder, what, error) from error
        raise DataError(
            f"fad.data.load(name={name!r}): reading it needs a package that is not "
            f'installed ({reason}). Install it with: pip install "fad[data]"'
        ) from error
    except Exception as error:  # Damaged bytes can raise anything in a decoder.
        raise unreadable(name, data_dir, folder, what, error) from error


def _num_records(file: Any) -> int:
    module: Any = importlib.import_module("array_record.python.array_record_module")
    reader = module.ArrayRecordReader(str(file))
    try:
        return reader.num_records()
    finally:
        reader.close()


def _check_count(name: str, folder: Path, split: str, stated: int, found: int) -> None:
    if found != stated:
        raise DataError(
            f"fad.data.load(name={name!r}): the metadata in {folder} states {stated} "
            f"examples of {split!r}, but its files hold {found}. Remove the folder and "
            "prepare the set again."
        )


def _infos(name: str, features: Any) -> dict[str, Any]:
    """Return the declared shape and dtype of every feature, by sorted name."""
    infos = dict(sorted(_flat(features.get_tensor_info()).items()))
    for feature, info in infos.items():
        if not hasattr(info, "np_dtype"):
            raise DataError(
                f"fad.data.load(name={name!r}): the feature {feature!r} is a data set "
                "of its own, which no array can hold. Read this set through "
                "tensorflow_datasets."
            )
    return infos


def _column(info: Any, rows: int) -> np.ndarray:
    dtype = np.dtype(info.np_dtype)
    if dtype.kind == "O" or None in info.shape:
        return np.empty(rows, object)
    return np.empty((rows, *info.shape), dtype)


def _store(
    name: str,
    columns: Examples,
    infos: Mapping[str, Any],
    i: int,
    record: dict[str, Any],
) -> None:
    for feature, column in columns.items():
        value, info = record[feature], infos[feature]
        if value is None:
            raise DataError(
                f"fad.data.load(name={name!r}): example {i} has no {feature!r}, which "
                "the set's features.json declares. Prepare the set again, or, where "
                "the feature is optional, read it through tensorflow_datasets."
            )
        if column.dtype.kind == "O":
            column[i] = _ragged(value, info.shape, info.np_dtype)
        elif np.shape(value) != column.shape[1:]:
            raise DataError(
                f"fad.data.load(name={name!r}): example {i} of {feature!r} has the "
                f"shape {np.shape(value)}, but the set declares {column.shape[1:]}."
            )
        else:
            column[i] = value


def _ragged(value: Any, shape: tuple[int | None, ...], dtype: Any) -> Any:
    """Turn lists into arrays, of arrays where their shapes vary."""
    if not isinstance(value, list):
        return value
    inner = [size for size in shape[1:] if size is not None]
    if len(inner) < len(shape) - 1:
        made = np.empty(len(value), object)
        value = [_ragged(element, shape[1:], dtype) for element in value]
    else:
        made = np.empty((len(value), *inner), dtype)
    for i, element in enumerate(value):
        made[i] = element
    return made


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Join the names of nested dicts by "/"."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": x for key, x in _flat(value).items()}
        else:
            flat[name] = value
    return flat
