"""Every real set equals its source, by hashes that were taken without fad."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fad.data import PRINTABLE, load, next_character, speeches

ROOT = Path(__file__).parents[2]
# Of tfds.data_source's records: the feature's name, then its dtype, shape and bytes, or
# the length and bytes of every text; features sorted.
HASHES = {
    (
        "mnist",
        "train",
    ): "213f8a27d62b6597f5e36d0da06e19dc2f814a5b90c193046d3a9c3e0063aa95",
    (
        "mnist",
        "test",
    ): "67251b9edc9cd08f36b2f6d2e6abeb5a6b2e569c131b9cc8d9bf879c57bd7b0a",
    (
        "fashion_mnist",
        "train",
    ): "da73084f41b22e0af8ec6a6de5b21cbb68f45b609700607d2fbfa48293ca38d0",
    (
        "fashion_mnist",
        "test",
    ): "f61b2e185c2887f50c77410ae942d9d6e7158ca3651db5e10a81d97bbfc7eb82",
    (
        "tiny_shakespeare",
        "train",
    ): "be97971a4464201a04be0fbb5286169745297f79f23bff55dfe61f22693fc8bd",
    (
        "tiny_shakespeare",
        "validation",
    ): "f24a9898dfcae78f781435fa325142908ad11cfb4b61d23405918873baa3a5ea",
    (
        "tiny_shakespeare",
        "test",
    ): "cbe5d271fa4f3ad960d8b24041456ad40edc46bac7a9dc77f52c28898404253e",
    (
        "tiny_shakespeare_roles",
        "train",
    ): "f84c343e1ca3769172f443c0142e9fc1876a6327892e7332921159be84466abd",
    (
        "heart_disease_uci",
        "cleveland",
    ): "d7c7954ca5a7e83e61dc79ddd59fc9392aa88a80ea7d5e30b0db19850a4d796c",
    (
        "heart_disease_uci",
        "hungarian",
    ): "9e08b49fb8211eda144576260090959cd948aec41263fe00697ec2ff0ac7b5fc",
    (
        "heart_disease_uci",
        "switzerland",
    ): "7eaadf35dae3fafd9282a0261a48d28d3f077a8b63ff47a7b5048937ec420122",
    (
        "heart_disease_uci",
        "va",
    ): "659a207ed00ef903c2917d549223adfaadd938a025026b2c2f2549c7c10c912e",
    (
        "omniglot_writers",
        "train",
    ): "b8e39b917e33224a93bc48cd6259cdaffd23507ac09b49502db86f35629607f4",
    (
        "cifar10_jpeg",
        "train",
    ): "7873ae56d27fbf20b0c1b47806e1253478f7b8ec8a9fc9dba121bddff6c8e34a",
    (
        "cifar10_jpeg",
        "test",
    ): "3de0500aa22b1f050987c9b7dfc176f4c39c600c546473f4395786ccc57245da",
}
SLOW = {"mnist", "fashion_mnist", "cifar10_jpeg"}


@pytest.fixture(scope="module", autouse=True)
def _real(tmp_path_factory):
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("real data: TFDS_DATA_DIR is not set")
    # The folder with the real data is for reading.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAD_CACHE_DIR", str(tmp_path_factory.mktemp("arrays")))
        yield


def _load(name, **options):
    folder = Path(os.environ["TFDS_DATA_DIR"], name.partition(":")[0])
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is not there")
    return load(name, download=False, **options)


def _hash(examples):
    made = hashlib.sha256()
    for name in sorted(examples):
        made.update(name.encode())
        column = examples[name]
        if column.dtype == object:
            for text in column:
                made.update(len(text).to_bytes(8, "little") + text)
        else:
            made.update(f"{column.dtype}{column.shape}".encode() + column.tobytes())
    return made.hexdigest()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param(*key, marks=pytest.mark.slow if key[0] in SLOW else [])
        for key in HASHES
    ],
)
def test_equals_the_source(name, split):
    for _ in ("decoded", "kept"):
        assert _hash(_load(name, split=split)) == HASHES[name, split]


@pytest.mark.slow
def test_mnist_takes_under_a_second_the_second_time():
    _load("mnist", split="train")
    program = (
        "import sys, time, fad.data\nfrom fad.data import load\n"
        "start = time.perf_counter()\nload('mnist', split='train')\n"
        "print(time.perf_counter() - start, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, tensorflow = done.stdout.split()
    assert float(seconds) < 1
    assert tensorflow == "False"


@pytest.mark.slow
def test_mnist_takes_under_25_seconds_the_first_time(tmp_path, monkeypatch):
    monkeypatch.setenv("FAD_CACHE_DIR", str(tmp_path))
    start = time.perf_counter()
    _load("mnist", split="train")
    assert time.perf_counter() - start < 25


def test_nothing_imports_tensorflow():
    _load("heart_disease_uci")
    program = (
        "import sys\nfrom fad.data import load\nload('heart_disease_uci')\n"
        "load('omniglot_writers', split='train[:5]')\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("name", "by", "clients", "largest"),
    [
        ("heart_disease_uci", "split", 4, 303),
        ("heart_disease_uci", "hospital", 4, 303),
        ("omniglot_writers", "writer", 160, 47),
        ("tiny_shakespeare_roles", "role", 309, None),
    ],
)
def test_natural_clients(name, by, clients, largest):
    made = _load(name, clients_by=by)
    assert made.num_clients == clients
    assert len(set(made.names)) == clients
    if largest:
        assert made.sizes.max() == largest


def test_shakespeare_by_role():
    roles = _load("tiny_shakespeare_roles", split="train", clients_by="role")
    windows = next_character(roles)
    assert windows.names == roles.names
    texts = [b"\n".join(roles.client(i)["text"]) for i in range(roles.num_clients)]
    lengths = np.array([len(text) for text in texts])
    assert (lengths >= 1000).sum() == 141
    np.testing.assert_array_equal(windows.sizes, -(-np.maximum(lengths - 1, 0) // 80))
    first = windows.client(7)
    said = PRINTABLE.decode(first["y"].reshape(-1))
    assert said == texts[7].decode()[1:]
    assert (windows.examples["x"] != 1).all()


def test_speeches_are_those_of_the_set_by_role():
    parts = _load("tiny_shakespeare")
    splits = ("train", "validation", "test")
    whole = b"".join(parts[split]["text"][0] for split in splits)
    rows, roles = speeches(whole.decode()), _load("tiny_shakespeare_roles")["train"]
    for name in ("role", "text"):
        assert rows[name].tolist() == roles[name].tolist()
