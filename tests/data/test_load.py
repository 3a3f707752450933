"""Sets by name: scikit-learn's, natural clients, and what is not there."""

import hashlib
import socket
import sys
import time

import numpy as np
import pytest

from fad.data import group_by, load
from fad.data._bundled import BUNDLED
from fad.data._prepare import online

pytestmark = pytest.mark.once

# Published results depend on these rows and their order.
DIGITS = {
    "train": "1bddce07159d3948914159b7995e2dad3c44a35d188d66b5e9ca82899f7dcbb8",
    "test": "42b1ef9d444c251f6afd2ca516b0c41cbbce53fac34cb9e06cb4293fc05005a8",
}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("fad.data._prepare.online", lambda: False)


@pytest.mark.parametrize("split", DIGITS)
def test_digits_never_change(split):
    digits = load("digits", split=split)
    content = digits["image"].tobytes() + digits["label"].tobytes()
    assert hashlib.sha256(content).hexdigest() == DIGITS[split]


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        (
            "digits",
            {"image": ("uint8", (8, 8, 1)), "label": ("int64", ())},
            (1438, 359),
        ),
        (
            "breast_cancer",
            {"x": ("float64", (30,)), "label": ("int64", ())},
            (456, 113),
        ),
        ("diabetes", {"x": ("float64", (10,)), "target": ("float64", ())}, (354, 88)),
    ],
)
def test_bundled_sets(name, columns, rows):
    splits = load(name)
    assert list(splits) == ["train", "test"]
    assert tuple(len(s[next(iter(s))]) for s in splits.values()) == rows
    for split in splits.values():
        assert {k: (str(x.dtype), x.shape[1:]) for k, x in split.items()} == columns


def test_bundled_splits_keep_the_share_of_every_label():
    train, test = load("breast_cancer", split=["train", "test"])
    shares = [part["label"].mean() for part in (train, test)]
    np.testing.assert_allclose(*shares, atol=0.005)


def test_split_syntax():
    whole = load("digits")
    np.testing.assert_array_equal(
        load("digits", split="train[:10]+test[-5:]")["label"],
        np.concatenate([whole["train"]["label"][:10], whole["test"]["label"][-5:]]),
    )
    parts = load("digits", split=("train[:80%]", "train[80%:]"))
    assert isinstance(parts, list)
    assert [len(part["label"]) for part in parts] == [1150, 288]
    assert load("digits", split=[]) == []


def test_arrays_are_the_callers_own():
    one, other, part = load("digits", split=["train", "train", "train[:5]"])
    one["label"][:] = -1
    assert (other["label"] >= 0).all()
    assert (part["label"] >= 0).all()
    assert part["label"].flags.owndata


@pytest.mark.parametrize("name", BUNDLED)
def test_names_the_extra_without_scikit_learn(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r'pip install "fad\[experiments\]"'):
        load(name)


def test_clients_by_column():
    clients = load("digits", split="test", clients_by="label")
    assert clients.names == tuple("0123456789")
    assert list(clients.examples) == ["image"]
    test = load("digits", split="test")
    np.testing.assert_array_equal(
        clients.client(3)["image"], test["image"][test["label"] == 3]
    )
    assert load("digits", clients_by="label").sizes.sum() == 1797


def test_clients_by_split():
    clients = load("digits", clients_by="split")
    assert clients.names == ("train", "test")
    assert clients.sizes.tolist() == [1438, 359]
    clients = load("digits", split="test[:5]+train[:3]+test[7:9]", clients_by="split")
    assert clients.names == ("test", "train")
    test = load("digits", split="test[:5]+test[7:9]")
    np.testing.assert_array_equal(clients.client(0)["label"], test["label"])


def test_several_splits_give_several_federations():
    first, second = load(
        "digits", split=["train[:500]", "train[500:]"], clients_by="label"
    )
    assert (first.sizes.sum(), second.sizes.sum()) == (500, 938)


def test_clients_by_a_column_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"clients_by='writer'\): there is no such column.*image, lab"
    ):
        load("digits", clients_by="writer")


@pytest.mark.parametrize("by", ["label", "split"])
def test_clients_of_no_rows(by):
    match = rf"load\(name='digits', clients_by='{by}'\): the rows .* 'train' are none"
    with pytest.raises(ValueError, match=match):
        load("digits", split="train[:0]", clients_by=by)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("digits", "image", "expected one label per example, .* got uint8"),
        ("diabetes", "target", "expected integers or texts, of one kind; got float64"),
    ],
)
def test_clients_by_a_column_that_makes_no_groups(name, column, message):
    with pytest.raises(ValueError, match=rf"data\.load\(clients_by=.*{message}"):
        load(name, clients_by=column)


def test_clients_by_the_only_column(monkeypatch):
    split = {"test": {"label": np.arange(3)}}
    monkeypatch.setattr("fad.data._load.read_bundled", lambda name: split)
    with pytest.raises(ValueError, match=r"clients_by='label'\): it is the only col"):
        load("digits", clients_by="label")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 3}, r"name=\.\.\.\): expected the name of a set, .*; got int 3"),
        ({"split": 3}, r"split=\.\.\.\): expected a text .* or None; got 3\."),
        ({"split": ["test", None]}, r"split=.*a list of texts.*\['test', None\]"),
        ({"data_dir": 3}, "data_dir=.*expected a folder, or None; got int 3"),
        ({"clients_by": 3}, "clients_by=.*the name of a column, .*; got int 3"),
    ],
)
def test_refuses_arguments_of_other_types(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**{"name": "digits", **arguments})


def test_group_by_texts():
    role = np.array([b"Romeo", b"Juliet", b"Romeo"], object)
    clients = group_by({"x": np.arange(3), "role": role}, "role")
    assert clients.names == ("Juliet", "Romeo")
    assert clients.client(1)["x"].tolist() == [0, 2]


def test_group_by_refuses():
    with pytest.raises(ValueError, match=r"column='z'.*no such column. .* are x\."):
        group_by({"x": np.arange(3)}, "z")
    with pytest.raises(ValueError, match="it is the only column, so the clients"):
        group_by({"x": np.arange(3)}, "x")
    with pytest.raises(ValueError, match=r"group_by\(column=.*expected integers or te"):
        group_by({"x": np.arange(3), "y": np.zeros(3)}, "y")


@pytest.mark.parametrize(
    "name", ["", "a b", "../mnist", "mnist:3", "mnist/", "huggingface:mnist/x"]
)
def test_refuses_names(name):
    with pytest.raises(ValueError, match="expected a name such as 'mnist', 'emnist/"):
        load(name)


def test_a_missing_set_offline(offline, tmp_path):
    started = time.monotonic()
    with pytest.raises(ValueError, match="there is no network to get it from") as info:
        load("mnst", data_dir=tmp_path)
    assert time.monotonic() - started < 2
    text = str(info.value)
    assert f"not prepared in {tmp_path} (data_dir)" in text
    assert "Sets that are there: none." in text
    assert 'pip install "fad[data]" tensorflow' in text
    assert "python -c 'import tensorflow_datasets as tfds; tfds.builder(" in text
    assert 'file_format="array_record").download_and_prepare()' in text
    assert f"copy what it makes to {tmp_path}" in text


def test_a_missing_set_that_must_not_be_downloaded(tmp_path, monkeypatch):
    def fail():
        raise AssertionError("asked for the network")

    monkeypatch.setattr("fad.data._prepare.online", fail)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    with pytest.raises(ValueError, match="download=False was given") as info:
        load("mnist", download=False)
    assert f"{tmp_path / 'tensorflow_datasets'} (the default, TFDS_" in str(info.value)


@pytest.mark.parametrize("delay", [0, 60])
def test_a_probe_that_fails_or_hangs(monkeypatch, delay):
    def connect(address, timeout):
        time.sleep(delay)
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("fad.data._prepare._PATIENCE", 0.1)
    assert not online()


@pytest.mark.parametrize(
    ("proxies", "address"),
    [
        ({}, ("storage.googleapis.com", 443)),
        ({"https": "http://proxy:3128"}, ("proxy", 3128)),
        ({"https": "proxy:3128"}, ("proxy", 3128)),
        ({"https": "user:word@proxy"}, ("proxy", 80)),
    ],
)
def test_a_probe_that_succeeds(monkeypatch, proxies, address):
    asked = []

    class Connection:
        def close(self):
            pass

    def connect(address, timeout):
        asked.append(address)
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("urllib.request.getproxies", lambda: proxies)
    assert online()
    assert asked == [address]


def test_a_proxy_that_is_no_address_is_offline(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "proxy:port"})
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: None)
    assert not online()
