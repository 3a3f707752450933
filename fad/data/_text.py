"""Texts as windows of characters, each of which predicts the next."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import positive
from fad.data._federated import Federated

PADDING, UNKNOWN = 0, 1
_FIRST = 2


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The characters that a model knows, numbered in the order of their code points.

    Number 0 is padding, 1 stands for any other character, and the characters follow
    from 2.

    Args:
        characters: The characters, each once, in any order.

    Raises:
        DataError: If there is none, or one stands there twice.

    Example:
        >>> vocabulary = Vocabulary("ba")
        >>> vocabulary.size, vocabulary.encode("abc").tolist()
        (4, [2, 3, 1])
    """

    characters: str

    def __post_init__(self) -> None:
        """Check the characters."""
        if not self.characters or len(set(self.characters)) < len(self.characters):
            raise DataError(
                "fad.data.Vocabulary(characters=...): expected at least one character, "
                f"each once; got {self.characters!r}."
            )

    @property
    def size(self) -> int:
        """The number of ids: the characters, padding and the unknown one."""
        return _FIRST + len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Return the number of every character: ``int32 [len(text)]``.

        Args:
            text: Any text.

        Returns:
            The numbers, from 1 up to ``size - 1``.

        Example:
            >>> Vocabulary("ab").encode("a?").tolist()
            [2, 1]
        """
        points, known = _points(text), self._sorted
        places = np.minimum(np.searchsorted(known, points), len(known) - 1)
        found = known[places] == points
        return np.where(found, places + _FIRST, UNKNOWN).astype(np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of numbers: padding is left out, the unknown is U+FFFD.

        Args:
            ids: Integers ``[n]`` from 0 up to ``size - 1``.

        Returns:
            The text.

        Raises:
            DataError: If ids are not one axis of such integers.

        Example:
            >>> Vocabulary("ab").decode(np.array([3, 2, 0]))
            'ba'
        """
        ids = np.asarray(ids)
        fits = ids.ndim == 1 and ids.dtype.kind in "iu"
        if not fits or ((ids < 0) | (ids >= self.size)).any():
            raise DataError(
                f"fad.data.Vocabulary.decode(ids=...): expected integers [n] in "
                f"0..{self.size - 1}; got {describe(ids)}."
            )
        table = ["", "\N{REPLACEMENT CHARACTER}", *map(chr, self._sorted)]
        return "".join(table[i] for i in ids)

    @functools.cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(_points(self.characters))


PRINTABLE = Vocabulary("\n" + "".join(map(chr, range(ord(" "), ord("~") + 1))))


def speeches(play: str) -> dict[str, np.ndarray]:
    r"""Cut a play into its speeches: who speaks, and what.

    Blank lines end a speech, whose first line is the role and a colon, as in
    tensorflow-datasets' ``tiny_shakespeare`` (all splits together). A role need not be
    that of one play alone, and its speech may be empty.

    Args:
        play: The text.

    Returns:
        ``role`` and ``text``, ``[N]`` objects of bytes, in the order of the play. Make
        clients of them by ``fad.data.group_by(..., "role")``.

    Raises:
        DataError: If a speech does not begin with a role and a colon.

    Example:
        >>> rows = speeches("ROMEO:\nAy me!\n\nJULIET:\nO Romeo,\nRomeo!")
        >>> rows["role"].tolist(), rows["text"].tolist()
        ([b'ROMEO', b'JULIET'], [b'Ay me!', b'O Romeo,\nRomeo!'])
    """
    roles, texts = [], []
    for speech in re.split("\n{2,}", play.strip("\n")):
        head, _, text = speech.partition("\n")
        if not head.endswith(":"):
            raise DataError(
                "fad.data.speeches(play=...): expected every speech to begin with a "
                f"role and a colon, and a blank line between two; got {head!r}."
            )
        roles.append(head.removesuffix(":").encode())
        texts.append(text.encode())
    return {"role": np.array(roles, object), "text": np.array(texts, object)}


def next_character(
    clients: Federated,
    *,
    column: str = "text",
    length: int = 80,
    vocabulary: Vocabulary | None = None,
) -> Federated:
    r"""Cut each client's texts into windows whose characters predict the next one.

    A client's texts are joined by line breaks, in their order, and numbered. Its
    examples are ``x: int32 [n, length]`` and ``y: int32 [n, length]``, which is x moved
    on by one: every character but the first is predicted once. The last window is
    filled up with 0 in both, which the loss is to leave out. Other columns are
    dropped. A client with fewer than two characters has no examples.

    Args:
        clients: Clients with texts, bytes in UTF-8 or str, ``[N]``. Bytes that are no
            UTF-8 count as unknown characters.
        column: The texts.
        length: The number of characters in a window.
        vocabulary: The characters that are told apart; None for ``PRINTABLE``, the
            line break and the 95 printable characters of ASCII.

    Returns:
        The clients in their order, with their names.

    Raises:
        DataError: If there is no such column, it holds no texts, length is not a
            positive integer, or no client has two characters.

    Example:
        >>> texts = Federated({"text": np.array([b"to", b"be"])}, np.array([0, 2]))
        >>> windows = next_character(texts, length=3, vocabulary=Vocabulary("\nbeot"))
        >>> windows.client(0)["x"].tolist(), windows.client(0)["y"].tolist()
        ([[6, 5, 2], [3, 0, 0]], [[5, 2, 3], [4, 0, 0]])

    Source: B. McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, 2017, section 3 (https://arxiv.org/abs/1602.05629).
    """
    length = positive("next_character", "length", length)
    known = PRINTABLE if vocabulary is None else vocabulary
    texts = _texts(clients, column)
    x, y = [], []
    for start, stop in zip(clients.offsets[:-1], clients.offsets[1:], strict=True):
        ids = known.encode("\n".join(texts[start:stop]))
        x.append(_windows(ids[:-1], length))
        y.append(_windows(ids[1:], length))
    sizes = [len(windows) for windows in x]
    if not sum(sizes):
        raise DataError(
            f"fad.data.next_character(column={column!r}): expected a text of two "
            "characters or more at one client at least, but there is none."
        )
    examples = {"x": np.concatenate(x), "y": np.concatenate(y)}
    return Federated(examples, np.cumsum([0, *sizes]), names=clients.names)


def _windows(ids: np.ndarray, length: int) -> np.ndarray:
    """Cut into rows and fill up the last: ``[n] -> [ceil(n / length), length]``."""
    padded = np.full(-(-len(ids) // length) * length, PADDING, np.int32)
    padded[: len(ids)] = ids
    return padded.reshape(-1, length)


def _texts(clients: Federated, column: str) -> list[str]:
    if column not in clients.examples:
        raise DataError(
            f"fad.data.next_character(column={column!r}): there is no such column. The "
            f"columns are {', '.join(clients.examples)}."
        )
    values = clients.examples[column]
    texts = values.tolist() if values.ndim == 1 else [None]
    return [_text(column, values, text) for text in texts]


def _text(column: str, values: np.ndarray, text: Any) -> str:
    if isinstance(text, bytes):
        return text.decode("utf-8", "replace")
    if not isinstance(text, str):
        raise DataError(
            f"fad.data.next_character(column={column!r}): expected one text per "
            f"example, bytes or str; got {describe(values)}."
        )
    return text


def _points(text: str) -> np.ndarray:
    """Return the code points: ``uint32 [len(text)]``."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
