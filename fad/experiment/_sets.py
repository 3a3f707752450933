"""The data sets of configurations: features ``x`` and targets ``y`` of clients."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from fad import data as fad_data
from fad._errors import ConfigError
from fad.data import Federated
from fad.experiment._task_config import DataConfig

Examples = dict[str, np.ndarray]

# The natural clients of sets that have them: a column, or the splits themselves.
_CLIENTS = {
    "heart_disease_uci": "split",
    "omniglot_writers": "writer",
    "tiny_shakespeare": "role",
}
# What is learnt cannot say whose it is.
_LEARNT = ("image", "label", "text", "x", "target", "features")
# How many clients Synthetic(alpha, beta) has unless told otherwise.
_SYNTHETIC = 30
_BLOCK = 4096  # rows of pixels
# FLamby's choice (Ogier du Terrail et al., 2022): the last three columns are mostly
# missing outside Cleveland.
_HEART_COLUMNS, _CHOLESTEROL = 10, 4
_HEART_CODES = {2: (1, 2, 3, 4), 6: (0, 1, 2)}  # chest pain, ECG at rest


@dataclasses.dataclass(frozen=True)
class Source:
    """A set as a task needs it.

    Attributes:
        clients: The natural clients, or one that holds everything.
        test: The test split; None where the set has none.
        kind: What ``y`` is: classes ``[N]``, the next characters ``[N, length]`` or
            real values ``[N]``.
        outputs: The number of classes, of characters, or 1.
        scale: What pixels ``x`` are divided by; None where ``x`` are no pixels.
        moments: Mean and deviation of the scaled pixels, to be brought to 0 and 1; None
            to leave them.
        standardise: Whether the columns of ``x`` are brought to mean 0 and deviation 1,
            and NaN to 0, by the training examples' mean and deviation.
    """

    clients: Federated
    test: Examples | None
    kind: Literal["classes", "characters", "values"]
    outputs: int
    scale: float | None = None
    moments: tuple[float, float] | None = None
    standardise: bool = False


def read(data: DataConfig) -> Source:
    """Read the set of a configuration.

    Args:
        data: The configuration.

    Returns:
        The set.

    Raises:
        ConfigError: The set has no clients of its own, though asked for; they are of
            a column that is learnt from; the set holds nothing that the ready-made
            tasks learn from; no pixels to standardise or shrink, or no whole blocks.
        DataError: The set is not there.
    """
    source = _read(data)
    if data.shrink > 1 and source.scale is None:
        raise ConfigError(f"data.shrink: {data.set!r} has no images; leave it out.")
    if not data.standardise:
        return source
    if source.scale is None:
        raise ConfigError(
            f"data.standardise: {data.set!r} has no pixels; leave it out. Columns of "
            "tables are brought to mean 0 and deviation 1 without it."
        )
    mean, deviation = _moments(source.clients.examples["x"])
    moments = mean / source.scale, deviation / source.scale
    return dataclasses.replace(source, moments=moments)


def _moments(pixels: np.ndarray) -> tuple[float, float]:
    """Return mean and deviation, some rows at a time: no large copy is made."""
    total = squares = 0.0
    for start in range(0, len(pixels), _BLOCK):
        block = pixels[start : start + _BLOCK].astype(np.float64)
        total, squares = total + block.sum(), squares + (block**2).sum()
    mean = total / pixels.size
    return float(mean), float(np.sqrt(squares / pixels.size - mean**2))


def _read(data: DataConfig) -> Source:
    if data.set == "synthetic":
        natural = data.clients if data.partition == "natural" else None
        clients = fad_data.synthetic(
            data.alpha, data.beta, clients=natural or _SYNTHETIC, seed=data.seed
        )
        return Source(clients, None, "classes", 10)
    name = data.set.partition(":")[0]  # without the version
    splits = fad_data.load(data.set)
    if name == "tiny_shakespeare":
        # The splits cut one text; as clients have parts of their own, it is made whole.
        parts = [x for x in ("train", "validation", "test") if x in splits]
        whole = b"".join(splits[part]["text"][0] for part in parts)
        splits = {"train": fad_data.speeches(whole.decode())}
    column = data.clients_by or _CLIENTS.get(name)
    if column in _LEARNT:
        raise ConfigError(
            f"data.clients_by: {column!r} is what is learnt and cannot name the "
            f"clients as well. Choose one of {', '.join(_columns(splits))}."
        )
    train = "train" if "train" in splits else None
    if data.partition == "natural" and not column:
        raise ConfigError(
            f"data.partition: {data.set!r} has no clients of its own that are known: "
            f"name their column by clients_by, one of {', '.join(_columns(splits))}; "
            "or choose another partition."
        )
    rows = splits[train] if train else _joined(list(splits.values()))
    if column == "split":
        clients = fad_data.load(data.set, split=train, clients_by=column)
    elif column:
        clients = fad_data.group_by(rows, column)
    else:
        clients = Federated(rows, np.array([0, len(next(iter(rows.values())))]))
    # Without a train split all splits are the clients', and the test is held out.
    test = splits.get("test") if train else None
    return _reader(name, clients)(clients, test, data)


def _reader(name: str, clients: Federated) -> Callable[..., Source]:
    """Return what turns the columns of a set into ``x`` and ``y``."""
    columns = set(clients.examples)
    if name == "heart_disease_uci":
        return _heart
    if {"image", "label"} <= columns:
        return _images
    if "text" in columns:
        return _text
    if {"x", "label"} <= columns or {"x", "target"} <= columns:
        return _table
    raise ConfigError(
        f"data.set: no ready-made task learns from {name!r}, whose columns are "
        f"{', '.join(sorted(columns))}; expected image and label, text, or x and label "
        "or target. Build a fad.data.Task from it and call fad.experiment.run."
    )


def _images(clients: Federated, test: Examples | None, data: DataConfig) -> Source:
    """Pixels as they are, but for Omniglot's drawings.

    These, 105 wide, shrink to a third, and ink becomes the bright part: paper of 1 all
    over keeps a network from learning for long.
    """

    def rows(examples: Examples) -> Examples:
        image = examples["image"]
        if data.set.startswith("omniglot_writers"):
            image = 255 - _shrunk(image, 3)
        image = _smaller(image, data)
        named = {"x": image, "y": examples["label"].astype(np.int32)}
        coarse = examples.get("coarse_label")
        return named if coarse is None else {**named, "coarse": coarse.astype(np.int32)}

    clients = dataclasses.replace(clients, examples=rows(clients.examples))
    tested = rows(test) if test else None
    # Scikit-learn's digits count the dark points of 4 by 4 blocks.
    scale = 16.0 if data.set == "digits" else 255.0
    return Source(clients, tested, "classes", _classes(clients, tested), scale)


def _smaller(image: np.ndarray, data: DataConfig) -> np.ndarray:
    """Shrink images as asked for: ``[N, h, w, c]``."""
    _, h, w, _ = image.shape
    if h % data.shrink or w % data.shrink:
        raise ConfigError(
            f"data.shrink = {data.shrink}: the images of {data.set!r} are {h} by {w} "
            "pixels; expected a number that divides both."
        )
    return image if data.shrink == 1 else _shrunk(image, data.shrink)


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of pixels: ``[N, h, w, c] -> [N, h/factor, w/factor, c]``."""
    n, h, w, c = image.shape
    blocks = image.reshape(n, h // factor, factor, w // factor, factor, c)
    return np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(image.dtype)


def _table(clients: Federated, test: Examples | None, data: DataConfig) -> Source:
    real = "target" in clients.examples

    def rows(examples: Examples) -> Examples:
        x = examples["x"].astype(np.float32)
        if real:
            return {"x": x, "y": examples["target"].astype(np.float32)}
        return {"x": x, "y": examples["label"].astype(np.int32)}

    clients = dataclasses.replace(clients, examples=rows(clients.examples))
    tested = rows(test) if test else None
    if real:
        return Source(clients, tested, "values", 1, standardise=True)
    outputs = _classes(clients, tested)
    return Source(clients, tested, "classes", outputs, standardise=True)


def _heart(clients: Federated, test: Examples | None, data: DataConfig) -> Source:
    """The 740 rows that are complete in the first ten columns, codes as indicators.

    Cholesterol 0 stands for a missing value, and is one here: NaN.
    """
    del test
    x = clients.examples["features"][:, :_HEART_COLUMNS]
    complete = ~np.isnan(x).any(axis=1)
    x, y = x[complete].copy(), clients.examples["label"][complete].astype(np.int32)
    x[x[:, _CHOLESTEROL] == 0, _CHOLESTEROL] = np.nan
    plain = [i for i in range(_HEART_COLUMNS) if i not in _HEART_CODES]
    # The first code is what the others are compared with.
    codes = [x[:, i] == c for i, known in _HEART_CODES.items() for c in known[1:]]
    x = np.column_stack([x[:, plain], *codes]).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(complete)])[clients.offsets]
    clients = Federated({"x": x, "y": y}, offsets, names=clients.names)
    return Source(clients, None, "classes", 2, standardise=True)


def _text(clients: Federated, test: Examples | None, data: DataConfig) -> Source:
    """Windows of characters; ``y`` is ``x`` moved on by one."""
    windows = fad_data.next_character(clients, length=data.length)
    tested = None
    if test:
        one = Federated(test, np.array([0, len(test["text"])]))
        tested = fad_data.next_character(one, length=data.length).pooled()
    outputs = fad_data.PRINTABLE.size
    return Source(windows, tested, "characters", outputs)


def _classes(clients: Federated, test: Examples | None) -> int:
    labels = [clients.examples["y"], *([test["y"]] if test else [])]
    return 1 + max(int(y.max()) for y in labels)


def _columns(splits: dict[str, Examples]) -> list[str]:
    names = next(iter(splits.values()))
    return ["split", *(name for name in names if name not in _LEARNT)]


def _joined(parts: list[Examples]) -> Examples:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
