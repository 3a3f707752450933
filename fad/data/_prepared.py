"""Sets that tensorflow-datasets prepared, found on disk by their metadata."""

import dataclasses
import glob
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from fad._cache_dir import cache_dir
from fad._errors import DataError
from fad.data._array_cache import read_arrays, write_arrays
from fad.data._decode import decode_split
from fad.data._prepare import missing, prepare, prepare_command, unreadable

Examples = dict[str, np.ndarray]
DataDir = str | os.PathLike[str] | None

_NAME = re.compile(
    r"(?P<set>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO, _FEATURES = "dataset_info.json", "features.json"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A set in a folder, ready to be read.

    Args:
        name: The name that it was asked for by.
        data_dir: The folder of all sets.
        folder: Its own folder, ``<data_dir>/<name>/[<config>/]<version>``.
        shards: The number of examples in every shard of every split.
    """

    name: str
    data_dir: Path
    folder: Path
    shards: dict[str, list[int]]

    def read(self, split: str) -> Examples:
        """Return a whole split, decoded now or before."""
        try:
            source = self._source(split)
        except OSError as error:
            what = f"the metadata in {self.folder}"
            raise unreadable(
                self.name, self.data_dir, self.folder, what, error
            ) from error
        folders = self._caches(split)
        for folder in folders:
            found = read_arrays(folder, source)
            if found is not None:
                return found
        rows = sum(self.shards[split])
        examples = decode_split(self.name, self.data_dir, self.folder, split, rows)
        write_arrays(folders, source, examples)
        return examples

    def _source(self, split: str) -> str:
        """Return what changes when the set is prepared again."""
        parts: list[Any] = [
            (self.folder / name).read_bytes() for name in (_INFO, _FEATURES)
        ]
        for file in sorted(self.folder.glob(f"*-{glob.escape(split)}.*")):
            stat = file.stat()
            parts.append((file.name, stat.st_size, stat.st_mtime_ns))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _caches(self, split: str) -> list[Path]:
        """Return where the decoded arrays may stand, the best first."""
        within = self.folder.relative_to(self.data_dir) / split
        # Sets of one name in two data folders are two sets.
        origin = hashlib.sha256(str(self.data_dir.resolve()).encode()).hexdigest()[:8]
        users = cache_dir() / "arrays" / origin / within
        if os.environ.get("FAD_CACHE_DIR"):
            return [users]
        return [self.data_dir / "fad_arrays" / within, users]


def find_prepared(name: str, data_dir: DataDir, download: bool) -> Prepared:
    """Find a set, or download and prepare it.

    Args:
        name: "set", "set/config" or either with ":version".
        data_dir: The folder of all sets; None for ``$TFDS_DATA_DIR`` or
            tensorflow-datasets' own.
        download: Whether a set that is not there may be downloaded.

    Returns:
        The set.

    Raises:
        DataError: If the name has another form, the set is not there and cannot be
            got, has several configs, stands in a format that cannot be read, or its
            metadata is damaged.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise DataError(
            f"fad.data.load(name={name!r}): expected a name such as 'mnist', "
            "'emnist/balanced' or 'mnist:3.0.1'."
        )
    folder, origin = _data_dir(data_dir)
    found = _newest(name, match, folder)
    if found is None:
        if not download:
            raise missing(name, folder, origin, "download=False was given")
        prepare(name, folder, origin)
        found = _newest(name, match, folder)
    if found is None:
        raise missing(name, folder, origin, "it was prepared in another place")
    try:
        info = json.loads((found / _INFO).read_text("utf-8"))
        given, shards = info.get("fileFormat", "tfrecord"), _shards(found, info)
    except Exception as error:  # Whatever a damaged file makes of the metadata.
        raise unreadable(name, folder, found, str(found / _INFO), error) from error
    _check_format(name, folder, found, given)
    return Prepared(name, folder, found, shards)


def _shards(folder: Path, info: dict[str, Any]) -> dict[str, list[int]]:
    """Return the number of examples in every shard of every split."""
    shards: dict[str, list[int]] = {}
    for split in info["splits"]:
        name = split["name"]
        shards[name] = [int(rows) for rows in split.get("shardLengths", [])]
        files = any(f"-{name}." in path.name for path in folder.iterdir())
        # Metadata leaves out what is empty, so that a lost list looks like no rows.
        if not shards[name] and (files or int(split.get("numBytes", 0))):
            raise ValueError(f"{name!r} has examples, but no shardLengths")
    if not shards:
        raise ValueError("it names no split")
    return shards


def _data_dir(data_dir: DataDir) -> tuple[Path, str]:
    """Return the folder of all sets, and where its name came from."""
    if data_dir is not None:
        return Path(os.path.expanduser(data_dir)), "data_dir"
    given = os.environ.get("TFDS_DATA_DIR")
    if given:
        return Path(os.path.expanduser(given)), "TFDS_DATA_DIR"
    return Path.home() / "tensorflow_datasets", "the default, TFDS_DATA_DIR is not set"


def _newest(name: str, match: re.Match, data_dir: Path) -> Path | None:
    """Return the folder of the newest version that fits, if there is one."""
    base = data_dir / match["set"]
    if match["config"]:
        return _version(base / match["config"], match["version"])
    found = _version(base, match["version"])
    if found is not None:
        return found
    infos = base.glob(f"*/*/{_INFO}")
    configs = sorted({path.parent.parent.name for path in infos})
    try:
        text = (base / ".config" / "metadata.json").read_text("utf-8")
        default = json.loads(text)["default_config_name"]
    except (OSError, ValueError, KeyError, TypeError):
        default = None
    if default in configs:
        return _version(base / default, match["version"])
    if not configs:
        return None
    raise DataError(
        f"fad.data.load(name={name!r}): this set has configs, and none is known to be "
        f"the usual one. Choose {' or '.join(f'{base.name}/{c}' for c in configs)}."
    )


def _version(folder: Path, wanted: str | None) -> Path | None:
    pattern = re.escape(wanted or "*.*.*").replace(r"\*", r"\d+")
    found = [
        path.parent
        for path in folder.glob(f"*/{_INFO}")
        if _VERSION.fullmatch(path.parent.name)
        and re.fullmatch(pattern, path.parent.name)
    ]
    return max(found, key=lambda path: [*map(int, path.name.split("."))], default=None)


def _check_format(name: str, data_dir: Path, folder: Path, given: str) -> None:
    if given == "array_record":
        return
    why = "it cannot be read at any position, as fad needs"
    if given == "parquet":
        why = "tensorflow-datasets loses records of it without a word"
    raise DataError(
        f"fad.data.load(name={name!r}): {folder} stands in the format {given!r}, and "
        f"{why}. Prepare it as array_record: remove that folder, then run\n"
        f"{prepare_command(name, data_dir)}"
    )
