"""Decoded arrays on disk: damage, several processes, and what they leave."""

import json
import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from fad.data._array_cache import read_arrays, write_arrays

pytestmark = pytest.mark.once

ARRAYS = {"image": np.arange(6, dtype=np.uint8), "age": np.arange(6) / 2}


@pytest.fixture
def folder(tmp_path):
    write_arrays([tmp_path / "train"], "one", ARRAYS)
    return tmp_path / "train"


def _same(examples) -> bool:
    return list(examples) == list(ARRAYS) and all(
        x.dtype == ARRAYS[name].dtype and np.array_equal(x, ARRAYS[name])
        for name, x in examples.items()
    )


@pytest.mark.parametrize("file", ["arrays.json", "age.values.npy"])
def test_any_flipped_bit_is_seen(folder, file):
    path = folder / file
    content = path.read_bytes()
    for i in range(len(content)):
        flipped = bytearray(content)
        flipped[i] ^= 1 << (i % 7)
        path.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_arrays(folder, "one")
        # White space in the index says nothing.
        assert found is None or _same(found), (i, content[i : i + 1])


def test_a_renamed_column_is_damage(folder):
    path = folder / "arrays.json"
    path.write_text(path.read_text().replace('"image"', '"mmage"'))
    with pytest.warns(RuntimeWarning, match="arrays.json has another checksum"):
        assert read_arrays(folder, "one") is None


def test_a_folder_that_must_not_be_read(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert read_arrays(folder, "one") is None


@pytest.mark.parametrize("put_back", [True, False])
def test_files_that_another_process_replaces(folder, monkeypatch, put_back):
    load = np.load

    def displaced(file, **options):
        monkeypatch.setattr(np, "load", load)
        shutil.rmtree(folder)
        if put_back:
            write_arrays([folder], "one", ARRAYS)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(np, "load", displaced)
    found = read_arrays(folder, "one")
    assert _same(found) if put_back else found is None


def test_the_second_writer_drops_its_own(tmp_path, monkeypatch):
    folder, rename = tmp_path / "train", os.rename

    def late(source, target):
        if not folder.exists():
            monkeypatch.setattr(os, "rename", rename)
            write_arrays([folder], "one", {"x": np.arange(3)})
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    write_arrays([folder], "two", {"x": np.arange(4)})
    assert json.loads((folder / "arrays.json").read_text())["source"] == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_the_same_arrays_are_not_displaced(folder):
    first = (folder / "arrays.json").stat().st_ino
    write_arrays([folder], "one", ARRAYS)
    assert (folder / "arrays.json").stat().st_ino == first
    assert [path.name for path in folder.parent.iterdir()] == ["train"]


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_text("{")]
)
def test_damaged_arrays_are_displaced(folder, damage):
    damage(folder / "arrays.json")
    write_arrays([folder], "one", ARRAYS)
    assert _same(read_arrays(folder, "one"))
    assert [path.name for path in folder.parent.iterdir()] == ["train"]


def test_old_leftovers_are_removed(folder):
    for name, days in ((".train-old", 2), (".train-new", 0.5), (".test-old", 2)):
        left = folder.parent / name
        left.mkdir()
        then = time.time() - days * 24 * 60 * 60
        os.utime(left, (then, then))
    write_arrays([folder], "two", ARRAYS)
    left = sorted(path.name for path in folder.parent.iterdir())
    assert left == [".test-old", ".train-new", "train"]


def test_nothing_is_left_where_the_old_ones_cannot_be_moved(folder, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.warns(RuntimeWarning, match="could not be kept.*not permitted"):
        write_arrays([folder], "two", ARRAYS)
    assert [path.name for path in folder.parent.iterdir()] == ["train"]
