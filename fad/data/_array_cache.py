"""Decoded arrays on disk: written whole or not at all, checked when read."""

import contextlib
import json
import os
import shutil
import tempfile
import time
import urllib.parse
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fad.data._ragged_arrays import flatten_column, restore_column

Examples = dict[str, np.ndarray]

# Changed when the files are laid out in another way.
_LAYOUT = 2
_INDEX = "arrays.json"
# What a killed writer left is older; what one still writes is not.
_DAY = 24 * 60 * 60


def read_arrays(folder: Path, source: str) -> Examples | None:
    """Return the arrays in a folder, or None where they must be decoded again.

    Every byte is checked against the sizes and checksums written with it. Arrays are
    read into memory: what happens to the files later does not reach them. What seems
    damaged is read a second time, as another process may have put new files there.

    Args:
        folder: Where ``write_arrays`` put them.
        source: What they were decoded from; other arrays are outdated.

    Returns:
        The arrays by name, or None: there are none, they are outdated or, with a
        warning, damaged.
    """
    why = ""
    for _ in range(2):
        try:
            return _read_all(folder, source)
        except PermissionError:
            return None
        except Exception as error:  # Damaged bytes make numpy raise almost anything.
            why = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"fad.data.load(): the decoded arrays in {folder} are damaged ({why}) and are "
        "made again.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def write_arrays(folders: Sequence[Path], source: str, examples: Examples) -> None:
    """Write the arrays to the first folder that can be written, else warn.

    They are written beside it and moved there in one step, so that no process reads
    half of them; of two that write the same at once, the second drops its own.

    Args:
        folders: Where they may stand, the best first.
        source: What they were decoded from.
        examples: The arrays by name.
    """
    failed = []
    for folder in folders:
        try:
            _write(folder, source, examples)
            return
        except (OSError, TypeError) as error:
            failed.append(f"{folder}: {error}")
    warnings.warn(
        "fad.data.load(): the decoded arrays could not be kept, so the next run "
        f"decodes again ({'; '.join(failed)}). Name a folder that can be written: set "
        "FAD_CACHE_DIR.",
        RuntimeWarning,
        stacklevel=2,
    )


def _read_all(folder: Path, source: str) -> Examples | None:
    """Return the arrays, or None where there are none from this source."""
    if not folder.is_dir():
        return None
    index = json.loads((folder / _INDEX).read_text("utf-8"))
    if (index["layout"], index["source"]) != (_LAYOUT, source):
        return None
    columns = index["columns"]
    if _columns_checksum(columns) != index["crc32"]:
        raise ValueError(f"{_INDEX} has another checksum than was written")
    return {
        name: restore_column(
            {role: _read(folder, entry) for role, entry in files.items()}
        )
        for name, files in columns.items()
    }


def _write(folder: Path, source: str, examples: Examples) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        columns: dict[str, dict[str, Any]] = {}
        for name, column in examples.items():
            stem = urllib.parse.quote(name, safe="")
            columns[name] = {
                role: _save(made / f"{stem}.{role}.npy", array)
                for role, array in flatten_column(column).items()
            }
        index = {
            "layout": _LAYOUT,
            "source": source,
            "crc32": _columns_checksum(columns),
            "columns": columns,
        }
        with open(made / _INDEX, "w", encoding="utf-8") as file:
            json.dump(index, file, indent=1)
            _sync(file)
        made.chmod(0o755)
        if not _is_good(folder, source):
            _move(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _is_good(folder: Path, source: str) -> bool:
    """Return whether another process wrote the same arrays in the meantime."""
    try:
        return _read_all(folder, source) is not None
    except Exception:  # Damaged, so that the new ones are needed.
        return False


def _move(made: Path, folder: Path) -> None:
    """Put the new folder in the place of an old one, unless another just did."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, old)
        finally:
            shutil.rmtree(old, ignore_errors=True)
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left beside the folder."""
    for path in folder.parent.iterdir():
        if path.name.startswith(f".{folder.name}-"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _DAY:
                    shutil.rmtree(path, ignore_errors=True)


def _save(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write one array; return what to check when it is read."""
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)
        _sync(file)
    return {
        "file": path.name,
        "size": path.stat().st_size,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "crc32": _checksum(array),
    }


def _read(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    path = folder / entry["file"]
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != entry["size"]:
            raise ValueError(f"{path.name} has not the size it was written with")
        array = np.load(file, allow_pickle=False)
    if array.dtype.kind == "V":  # Numpy forgets the names of JAX's own dtypes.
        array = array.view(np.dtype(entry["dtype"]))
    if (str(array.dtype), list(array.shape)) != (entry["dtype"], entry["shape"]):
        raise ValueError(f"{path.name} holds another array than was written")
    if _checksum(array) != entry["crc32"]:
        raise ValueError(f"{path.name} has another checksum than was written")
    return array


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _columns_checksum(columns: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(columns).encode())


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
