import numpy as np
import pytest

from fad import DataError
from fad.data import PRINTABLE, Federated, Vocabulary, next_character, speeches


def _clients(*texts, **others):
    flat = [text for client in texts for text in client]
    column = np.empty(len(flat), object)
    column[:] = flat
    offsets = np.cumsum([0, *map(len, texts)])
    names = tuple(f"role {i}" for i in range(len(texts)))
    return Federated({"text": column, **others}, offsets, names=names)


def test_windows_predict_every_character_but_the_first():
    clients = _clients([b"To be, or", b"not to be"], [b"x"], [], [b"", b"a"], ["ab"])
    windows = next_character(clients, length=4)
    assert windows.names == clients.names
    assert windows.sizes.tolist() == [5, 0, 0, 1, 1]
    x, y = windows.examples["x"], windows.examples["y"]
    assert x.dtype == y.dtype == np.int32
    assert x.shape == y.shape == (7, 4)
    first = windows.client(0)
    assert PRINTABLE.decode(first["x"].reshape(-1)) == "To be, or\nnot to b"
    assert PRINTABLE.decode(first["y"].reshape(-1)) == "o be, or\nnot to be"
    assert first["y"][-1].tolist()[2:] == [0, 0]
    np.testing.assert_array_equal(first["x"].reshape(-1)[1:18], first["y"].flat[:17])
    assert PRINTABLE.decode(windows.client(3)["y"][0]) == "a"


def test_other_columns_are_dropped():
    clients = _clients([b"ab"], position=np.arange(1))
    assert set(next_character(clients).examples) == {"x", "y"}


def test_numpys_own_texts():
    for texts in (np.array([b"ab", b"c"]), np.array(["ab", "c"])):
        clients = Federated({"words": texts}, np.array([0, 2]))
        windows = next_character(clients, column="words", length=3)
        assert PRINTABLE.decode(windows.examples["y"][0]) == "b\nc"
        assert windows.names is None


def test_unknown_characters():
    vocabulary = Vocabulary("ab")
    ids = next_character(_clients(["aéb", b"\xff"]), vocabulary=vocabulary)
    assert ids.examples["x"][0, :5].tolist() == [2, 1, 3, 1, 0]
    assert vocabulary.decode(np.array([2, 1, 3, 0])) == "a\ufffdb"


def test_printable():
    assert PRINTABLE.size == 98
    text = "".join(map(chr, range(128)))
    known = PRINTABLE.encode(text) > 1
    assert "".join(c for c, k in zip(text, known, strict=True) if k) == (
        "\n" + "".join(c for c in text if c.isprintable())
    )
    assert sorted(PRINTABLE.encode(PRINTABLE.characters)) == list(range(2, 98))
    assert PRINTABLE.encode("").shape == (0,)


@pytest.mark.parametrize("characters", ["", "aa"])
def test_refuses_vocabularies(characters):
    with pytest.raises(ValueError, match=r"Vocabulary\(characters=.*each once; got"):
        Vocabulary(characters)


@pytest.mark.parametrize("ids", [[5], [-1], [[2]], [0.5]])
def test_refuses_ids(ids):
    with pytest.raises(ValueError, match=r"expected integers \[n\] in 0\.\.3; got"):
        Vocabulary("ab").decode(np.array(ids))


def test_refuses_columns():
    with pytest.raises(ValueError, match=r"column='speech'.*no such.* are text\."):
        next_character(_clients([b"ab"]), column="speech")
    for values in (np.arange(2), np.zeros((2, 2), "S1")):
        clients = Federated({"text": values}, np.array([0, 2]))
        with pytest.raises(ValueError, match="expected one text per example, bytes or"):
            next_character(clients)


def test_refuses_texts_too_short():
    with pytest.raises(ValueError, match="expected a text of two characters or more"):
        next_character(_clients([b"a"], [b"b"]))


@pytest.mark.parametrize("length", [0, -1, 2.5])
def test_refuses_lengths(length):
    with pytest.raises(ValueError, match=r"next_character\(length=\.\.\.\): expected"):
        next_character(_clients([b"ab"]), length=length)


def test_speeches_may_be_empty_or_of_many_lines():
    rows = speeches("A:\none\ntwo\n\nB:\n\nA:\nthree: four\n")
    assert rows["role"].tolist() == [b"A", b"B", b"A"]
    assert rows["text"].tolist() == [b"one\ntwo", b"", b"three: four"]


@pytest.mark.parametrize("play", ["", "no role", "A:\none\n\ntwo"])
def test_speeches_refuses_a_text_without_roles(play):
    match = r"speeches\(play=\.\.\.\): expected every speech"
    with pytest.raises(DataError, match=match):
        speeches(play)
