"""Real data by name: tensorflow-datasets' sets and those of scikit-learn."""

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np

from fad._errors import DataError, describe
from fad.data._bundled import BUNDLED, read_bundled
from fad.data._checks import check_labels
from fad.data._federated import Federated
from fad.data._group import group_by
from fad.data._prepared import find_prepared
from fad.data._split import Part, parse_split

Examples = dict[str, np.ndarray]
DataDir = str | os.PathLike[str] | None


class _Set(Protocol):
    """What a set offers, wherever it comes from."""

    @property
    def shards(self) -> Mapping[str, Sequence[int]]: ...

    def read(self, split: str) -> Examples: ...


@dataclasses.dataclass(frozen=True)
class _Bundled:
    """A set that scikit-learn ships."""

    splits: dict[str, Examples]

    @property
    def shards(self) -> Mapping[str, Sequence[int]]:
        return {name: [_rows(split)] for name, split in self.splits.items()}

    def read(self, split: str) -> Examples:
        return self.splits[split]


@overload
def load(
    name: str,
    *,
    split: None = None,
    data_dir: DataDir = None,
    clients_by: None = None,
    download: bool = True,
) -> dict[str, Examples]: ...


@overload
def load(
    name: str,
    *,
    split: str,
    data_dir: DataDir = None,
    clients_by: None = None,
    download: bool = True,
) -> Examples: ...


@overload
def load(
    name: str,
    *,
    split: list[str] | tuple[str, ...],
    data_dir: DataDir = None,
    clients_by: None = None,
    download: bool = True,
) -> list[Examples]: ...


@overload
def load(
    name: str,
    *,
    split: str | None = None,
    data_dir: DataDir = None,
    clients_by: str,
    download: bool = True,
) -> Federated: ...


@overload
def load(
    name: str,
    *,
    split: list[str] | tuple[str, ...],
    data_dir: DataDir = None,
    clients_by: str,
    download: bool = True,
) -> list[Federated]: ...


def load(
    name: str,
    *,
    split: str | list[str] | tuple[str, ...] | None = None,
    data_dir: DataDir = None,
    clients_by: str | None = None,
    download: bool = True,
) -> Any:
    """Load a data set by name into memory: named arrays ``[N, *]``.

    Any set of tensorflow-datasets that is prepared as array_record, or that can be
    downloaded and prepared, keeps its names of features and its dtypes: images uint8
    ``[N, h, w, channels]``, labels int64 ``[N]``. A nested feature is called
    "outer/inner". Texts are object arrays of bytes, and features of varying shape
    object arrays of arrays. TensorFlow is not needed to read.

    The first call decodes whole splits and keeps the arrays in ``fad_arrays`` beside
    the sets, or in ``$FAD_CACHE_DIR`` where that is set, or in the user's cache folder
    where the data folder cannot be written. Later calls read those. The arrays
    returned are the caller's own: changing them changes nothing on disk.

    Scikit-learn's sets need no download and have the splits train and test, a fifth of
    the rows: "digits" (``image`` uint8 ``[N, 8, 8, 1]`` in 0..16, ``label``),
    "breast_cancer" (``x`` float64 ``[N, 30]``, ``label``) and "diabetes" (``x`` float64
    ``[N, 10]`` as measured, ``target`` float64). They go before sets of the same name.

    Args:
        name: "mnist", "emnist/balanced", "mnist:3.0.1". Without a version the newest
            that is there.
        split: "train", "train[:10%]", "train[100:200]", "train[2shard]", "train+test"
            or "all", as in tensorflow-datasets. Other than there, a slice that falls
            ("train[5:3]") and one of two units ("train[10%:1shard]") are refused, and
            "train[:0shard]" is empty, not everything. Several for as many results;
            None for every split.
        data_dir: The folder of the sets; None for ``$TFDS_DATA_DIR``, else
            ``~/tensorflow_datasets``.
        clients_by: A column, such as "writer": each of its values becomes a client,
            and the column is dropped. "split": each split becomes a client. None for
            examples without clients.
        download: Whether a set that is not there may be downloaded.

    Returns:
        Examples by split for None, the examples of one split, or a list of them for
        several. With ``clients_by`` the clients of all that one split names (None
        names every split), or a list of them for several.

    Raises:
        DataError: If the set is not there and cannot be got, is not in the format
            array_record, or its files are damaged; if a split or column is unknown;
            if clients are asked for, but there are no examples, or the column holds
            no integers or texts; if a package is missing.

    Example:
        >>> train = load("digits", split="train[:50%]")
        >>> train["image"].shape, train["image"].dtype
        ((719, 8, 8, 1), dtype('uint8'))
        >>> load("digits", split="train", clients_by="label").num_clients
        10
    """
    _check_types(name, split, data_dir, clients_by)
    source: _Set
    if name in BUNDLED:
        source = _Bundled(read_bundled(name))
    else:
        source = find_prepared(name, data_dir, download)
    if split is None:
        specs = ["all"] if clients_by is not None else list(source.shards)
    else:
        specs = [split] if isinstance(split, str) else list(split)
    asked = [parse_split(name, spec, source.shards) for spec in specs]
    uses = collections.Counter(part.split for parts in asked for part in parts)
    whole = {split: source.read(split) for split in uses}
    pieces = [[_slice(whole, part, uses) for part in parts] for parts in asked]
    if clients_by is None:
        made: list[Any] = [_joined(piece) for piece in pieces]
        if split is None:
            return dict(zip(specs, made, strict=True))
    else:
        both = zip(asked, pieces, strict=True)
        made = [_clients(name, clients_by, *pair) for pair in both]
    return made if isinstance(split, list | tuple) else made[0]


def _check_types(name: Any, split: Any, data_dir: Any, clients_by: Any) -> None:
    if not isinstance(name, str):
        raise DataError(
            "fad.data.load(name=...): expected the name of a set, such as 'mnist'; got "
            f"{describe(name)}."
        )
    several = split if isinstance(split, list | tuple) else [split]
    if split is not None and not all(isinstance(spec, str) for spec in several):
        raise DataError(
            f"fad.data.load(name={name!r}, split=...): expected a text such as "
            f"'train[:10%]', a list of texts, or None; got {split!r}."
        )
    if data_dir is not None and not isinstance(data_dir, str | os.PathLike):
        raise DataError(
            f"fad.data.load(name={name!r}, data_dir=...): expected a folder, or None; "
            f"got {describe(data_dir)}."
        )
    if clients_by is not None and not isinstance(clients_by, str):
        raise DataError(
            f"fad.data.load(name={name!r}, clients_by=...): expected the name of a "
            f"column, 'split', or None; got {describe(clients_by)}."
        )


def _slice(
    whole: Mapping[str, Examples], part: Part, uses: Mapping[str, int]
) -> Examples:
    """Return the rows of a part, copied where they are not all and used once."""
    examples = whole[part.split]
    rows = {name: x[part.start : part.stop] for name, x in examples.items()}
    if uses[part.split] == 1 and _rows(rows) == _rows(examples):
        return examples
    return {name: x.copy() for name, x in rows.items()}


def _clients(
    name: str, clients_by: str, parts: Sequence[Part], pieces: list[Examples]
) -> Federated:
    joined = _joined(pieces)
    where = f"fad.data.load(name={name!r}, clients_by={clients_by!r})"
    if not _rows(joined):
        splits = "+".join(part.split for part in parts)
        raise DataError(
            f"{where}: the rows that were asked for of {splits!r} are none, and "
            "clients need at least one. Ask for more of the split."
        )
    if clients_by == "split":
        # Two slices of one split are one client.
        names = list(dict.fromkeys(part.split for part in parts))
        owner = [names.index(part.split) for part in parts]
        owners = np.repeat(owner, [_rows(piece) for piece in pieces])
        indices = [np.flatnonzero(owners == i) for i in range(len(names))]
        return Federated.from_indices(joined, indices, names=tuple(names))
    if clients_by not in joined:
        raise DataError(
            f"{where}: there is no such column. The columns are {', '.join(joined)}; "
            "'split' makes one client of every split."
        )
    if len(joined) == 1:
        raise DataError(
            f"{where}: it is the only column, so the clients would hold nothing."
        )
    check_labels("load", "clients_by", joined[clients_by])
    return group_by(joined, clients_by)


def _joined(pieces: list[Examples]) -> Examples:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}


def _rows(examples: Examples) -> int:
    return len(next(iter(examples.values())))
