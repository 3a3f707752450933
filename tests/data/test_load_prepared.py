"""Sets of tensorflow-datasets: decoding, and what is kept of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fad._cache_dir import cache_dir
from fad.data import load

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
NAME = "fad_tiny"
WITHIN = Path(NAME) / "1.0.0"
EMPTY = {"name": "empty", "shardLengths": [], "numBytes": "0"}


@pytest.fixture
def decodes(monkeypatch):
    """The splits that were decoded."""
    from fad.data import _prepared

    decode, asked = _prepared.decode_split, []

    def spy(name, data_dir, folder, split, rows):
        asked.append(split)
        return decode(name, data_dir, folder, split, rows)

    monkeypatch.setattr(_prepared, "decode_split", spy)
    return asked


def _kept(sets: Path, split: str = "test") -> Path:
    return sets / "fad_arrays" / WITHIN / split


def _assert_same(one, other):
    assert list(one) == list(other)
    for a, b in zip(one.values(), other.values(), strict=True):
        assert a.dtype == b.dtype
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def _edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, **changes}), "utf-8")


def _edit_info(sets: Path, **changes) -> None:
    _edit(sets / WITHIN / "dataset_info.json", **changes)


def test_equals_the_source(sets):
    import tensorflow_datasets as tfds

    source: Any = tfds.data_source(
        NAME,
        split="train",
        data_dir=str(sets),
        builder_kwargs={"file_format": "array_record"},
    )
    train = load(NAME, split="train")
    kinds = {name: (str(x.dtype), x.shape[1:]) for name, x in train.items()}
    assert kinds == {
        "flag": ("bool", ()),
        "image": ("uint8", (4, 4, 1)),
        "label": ("int64", ()),
        "nested/a": ("float32", ()),
        "nested/b": ("int32", (2,)),
        "sequence": ("object", ()),
        "sized": ("object", ()),
        "text": ("object", ()),
        "words": ("object", ()),
    }
    for again in (train, load(NAME, split="train")):
        for i, record in enumerate(source.__getitems__(list(range(23)))):
            nested = record.pop("nested")
            record |= {"nested/a": nested["a"], "nested/b": nested["b"]}
            for name, value in record.items():
                np.testing.assert_array_equal(again[name][i], value)
        assert isinstance(again["text"][1], bytes)
        assert again["sequence"][1].dtype == np.int64
        assert again["sized"][0].dtype == np.uint8


def test_decodes_once(sets, decodes):
    first = load(NAME)
    assert decodes == ["train", "test"]
    again = load(NAME)
    assert decodes == ["train", "test"]
    for split in first:
        _assert_same(first[split], again[split])
    first["test"]["label"][:] = 9
    again["test"]["image"][:] = 9
    assert load(NAME, split="test")["label"].max() == 2
    assert decodes == ["train", "test"]
    assert not list(sets.glob("fad_arrays/*/*/.*"))


def test_slices_and_clients(sets):
    whole = load(NAME, split="train")
    part = load(NAME, split="train[2:4]+train[-1:]")
    rows = [2, 3, 22]
    _assert_same(part, {name: x[rows] for name, x in whole.items()})
    assert len(load(NAME, split="train[:0]")["text"]) == 0
    clients = load(NAME, clients_by="label")
    assert clients.names == ("0", "1", "2")
    assert clients.sizes.sum() == 30


def test_reads_without_tensorflow_and_without_tensorflow_datasets(sets):
    program = (
        "import sys\nfrom fad.data import load\n"
        f"load({NAME!r})\nprint('tensorflow' in sys.modules, "
        "'tensorflow_datasets' in sys.modules)"
    )
    for last in ("True", "False"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["False", last]


def test_two_processes_at_once(sets):
    program = f"from fad.data import load; print(load({NAME!r})['train'].keys())"
    command = [sys.executable, "-W", "error", "-c", program]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    kept = sorted(path.name for path in (sets / "fad_arrays" / WITHIN).iterdir())
    assert kept == ["test", "train"]


def test_a_half_written_one_is_never_read(sets, decodes, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", stop)
        with pytest.raises(KeyboardInterrupt):
            load(NAME, split="test")
    assert not list((sets / "fad_arrays" / WITHIN).iterdir())
    load(NAME, split="test")
    assert decodes == ["test", "test"]


def _truncate(folder: Path) -> None:
    path = folder / "image.values.npy"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    path = folder / "text.values.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _header(folder: Path) -> None:
    path = folder / "label.values.npy"
    path.write_bytes(path.read_bytes().replace(b"<i8", b"<u8"))


def _index(folder: Path) -> None:
    (folder / "arrays.json").write_text("{")


def _no_columns(folder: Path) -> None:
    path = folder / "arrays.json"
    content = json.loads(path.read_text())
    del content["columns"]
    path.write_text(json.dumps(content))


def _no_file(folder: Path) -> None:
    (folder / "image.values.npy").unlink()


def _no_index(folder: Path) -> None:
    (folder / "arrays.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip, _header, _index, _no_columns, _no_file, _no_index],
)
def test_damaged_arrays_are_made_again(sets, decodes, damage):
    first = load(NAME, split="test")
    damage(_kept(sets))
    with pytest.warns(RuntimeWarning, match=r"arrays in .*1\.0\.0/test are damaged"):
        _assert_same(load(NAME, split="test"), first)
    assert decodes == ["test", "test"]
    _assert_same(load(NAME, split="test"), first)
    assert decodes == ["test", "test"]


def test_a_set_prepared_again_is_decoded_again(sets, decodes):
    load(NAME, split="test")
    _edit_info(sets, description="another")
    load(NAME, split="test")
    (records,) = (sets / WITHIN).glob("*-test.*")
    os.utime(records, (1, 1))
    load(NAME, split="test")
    assert decodes == ["test"] * 3


def test_another_layout_is_decoded_again(sets, decodes):
    load(NAME, split="test")
    _edit(_kept(sets) / "arrays.json", layout=0)
    load(NAME, split="test")
    assert decodes == ["test", "test"]


def test_the_named_cache_folder_goes_first(sets, decodes, tmp_path, monkeypatch):
    monkeypatch.setenv("FAD_CACHE_DIR", str(tmp_path / "named"))
    load(NAME, split="test")
    assert not (sets / "fad_arrays").exists()
    (kept,) = (tmp_path / "named" / "arrays").glob(f"*/{WITHIN}/test/arrays.json")
    shutil.copytree(sets, tmp_path / "other")
    load(NAME, split="test", data_dir=tmp_path / "other")
    assert len(list(kept.parents[4].iterdir())) == 2
    load(NAME, split="test")
    assert decodes == ["test", "test"]


def test_the_named_cache_folder_may_stand_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FAD_CACHE_DIR", "~/named")
    assert cache_dir() == tmp_path / "named"


def test_a_data_folder_that_cannot_be_written(sets, decodes, tmp_path):
    (sets / "fad_arrays").write_text("in the way")
    load(NAME, split="test")
    assert list((tmp_path / "user" / "fad" / "arrays").rglob("arrays.json"))
    load(NAME, split="test")
    assert decodes == ["test"]


def test_no_folder_can_be_written(sets, decodes, tmp_path):
    for place in (sets / "fad_arrays", tmp_path / "user"):
        place.write_text("in the way")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="could not be kept.*set FAD_CACHE_DIR"):
            assert len(load(NAME, split="test")["label"]) == 7
    assert decodes == ["test", "test"]


def test_a_full_disk(sets, monkeypatch, tmp_path):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert len(load(NAME, split="test")["label"]) == 7
    assert not list(sets.rglob("*.npy"))


@pytest.mark.parametrize(
    ("given", "why"), [("parquet", "loses records"), ("tfrecord", "at any position")]
)
def test_refuses_other_formats(sets, given, why):
    _edit_info(sets, fileFormat=given)
    match = rf"1\.0\.0 stands in the format '{given}'.*{why}(.|\n)*remove that folder"
    with pytest.raises(ValueError, match=match + r"(.|\n)*download_and_prepare"):
        load(NAME)


@pytest.mark.parametrize("stated", [6, 8])
def test_refuses_another_number_of_records(sets, stated):
    path = sets / WITHIN / "dataset_info.json"
    path.write_text(path.read_text().replace('"7"', f'"{stated}"'))
    match = f"states {stated} examples of 'test', but its files hold 7"
    with pytest.raises(ValueError, match=match):
        load(NAME, split="test")


def test_refuses_damaged_records(sets):
    (records,) = (sets / WITHIN).glob("*-test.*")
    records.write_bytes(records.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"files of 'test' in .* cannot be read \("):
        load(NAME, split="test")


def test_refuses_examples_of_another_shape(sets):
    path = sets / WITHIN / "features.json"
    text = path.read_text()
    assert text.count('"4"') == 2
    path.write_text(text.replace('"4"', '"5"'))
    with pytest.raises(
        ValueError, match=r"example 0 of 'image' has the shape \(4, 4, "
    ):
        load(NAME, split="test")


def test_refuses_data_sets_within_data_sets():
    from fad.data._decode import _infos

    class Features:
        def get_tensor_info(self):
            return {"steps": object()}

    with pytest.raises(ValueError, match="'steps' is a data set of its own"):
        _infos(NAME, Features())


def test_splits_without_examples(sets):
    splits = json.loads((sets / WITHIN / "dataset_info.json").read_text())["splits"]
    _edit_info(sets, splits=[*splits, {**splits[0], **EMPTY}])
    assert load(NAME, split="empty")["image"].shape == (0, 4, 4, 1)


def _edit_split(sets: Path, **changes) -> None:
    path = sets / WITHIN / "dataset_info.json"
    splits = json.loads(path.read_text())["splits"]
    _edit_info(sets, splits=[splits[0], {**splits[1], **changes}])


@pytest.mark.parametrize(
    "changes", [{"shardLengths": [], "numBytes": "0"}, {**EMPTY, "numBytes": "9"}]
)
def test_refuses_a_split_that_lost_its_lengths(sets, changes):
    _edit_split(sets, **changes)
    with pytest.raises(ValueError, match="has examples, but no shardLengths"):
        load(NAME)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _not_utf8(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5] ^= 128
    path.write_bytes(content)


def _no_object(path: Path) -> None:
    path.write_text("[]")


def _empty_object(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize("damage", [_cut, _not_utf8, _no_object, _empty_object])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_refuses_damaged_metadata(sets, damage, file):
    damage(sets / WITHIN / file)
    with pytest.raises(ValueError, match=rf"{file}.* cannot be read \(") as info:
        load(NAME)
    assert f"Remove {sets / WITHIN}, then prepare the set again" in str(info.value)
    assert "download_and_prepare()" in str(info.value)


def test_refuses_metadata_without_splits(sets):
    _edit_info(sets, splits=[])
    with pytest.raises(ValueError, match=r"_info\.json cannot be .* names no split"):
        load(NAME)


def test_refuses_metadata_without_features(sets):
    (sets / WITHIN / "features.json").unlink()
    with pytest.raises(
        ValueError, match=r"metadata in .*1\.0\.0 cannot be .*features\.json"
    ):
        load(NAME)


@pytest.mark.parametrize(("old", "new"), [("flag", "flaG"), ("text", "teht")])
def test_refuses_features_that_the_records_lack(sets, old, new):
    path = sets / WITHIN / "features.json"
    path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"', 1))
    with pytest.raises(ValueError, match=rf"example 0 has no '{new}', which the set"):
        load(NAME, split="test")


@pytest.mark.parametrize(("old", "new"), [('"4"', '"x"'), ("int64", "int65")])
def test_refuses_features_of_no_kind(sets, old, new):
    path = sets / WITHIN / "features.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"_info\.json and features\.json\).*cannot"):
        load(NAME)


@pytest.mark.parametrize(
    "package", ["tensorflow_datasets", "array_record.python.array_record_module"]
)
def test_names_the_extra_where_a_package_is_missing(sets, monkeypatch, package):
    import tensorflow_datasets as tfds

    tfds.builder_from_directory(str(sets / WITHIN))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r'not installed.*pip install "fad\[data\]"'):
        load(NAME, split="test")


def test_names_the_extra_without_pillow(sets, monkeypatch):
    from tensorflow_datasets.core.features import image_feature

    monkeypatch.setattr(image_feature, "PIL_Image", None)
    monkeypatch.setattr(image_feature, "cv2", None)
    with pytest.raises(ValueError, match=r'not installed.*pip install "fad\[data\]"'):
        load(NAME, split="test")


def test_names_what_is_there(sets, monkeypatch):
    monkeypatch.setattr("fad.data._prepare.online", lambda: False)
    with pytest.raises(ValueError, match="Did you mean 'fad_tiny'") as info:
        load("fad_tiy")
    assert "(TFDS_DATA_DIR)" in str(info.value)
    assert "Sets that are there: fad_tiny." in str(info.value)


def test_versions(sets):
    shutil.copytree(sets / WITHIN, sets / NAME / "1.0.10")
    shutil.copytree(sets / WITHIN, sets / NAME / "1.0.9.incomplete")
    load(NAME, split="test")
    assert (sets / "fad_arrays" / NAME / "1.0.10").is_dir()
    load(f"{NAME}:1.0.0", split="test")
    assert _kept(sets).is_dir()
    assert len(load(f"{NAME}:1.*.*", split="test")["label"]) == 7
    with pytest.raises(ValueError, match=r"name='fad_tiny:2.0.0'\): this set is not"):
        load(f"{NAME}:2.0.0", download=False)


def test_configs(sets):
    for config in ("large", "small"):
        shutil.copytree(sets / WITHIN, sets / "sized" / config / "1.0.0")
    assert len(load("sized/large", split="test")["label"]) == 7
    with pytest.raises(
        ValueError, match=r"has configs.*Choose sized/large or sized/small"
    ):
        load("sized")
    (sets / "sized" / ".config").mkdir()
    (sets / "sized" / ".config" / "metadata.json").write_text(
        '{"default_config_name": "small"}'
    )
    load("sized", split="test")
    assert (sets / "fad_arrays" / "sized" / "small" / "1.0.0" / "test").is_dir()


def test_prepares_what_is_not_there(sets, tmp_path, monkeypatch):
    from tests.data import tiny_set

    monkeypatch.setattr("fad.data._prepare.online", lambda: True)
    new = tmp_path / "new"
    assert len(load(NAME, split="test", data_dir=new)["label"]) == tiny_set.ROWS["test"]
    assert (new / WITHIN / "dataset_info.json").is_file()


def test_says_why_preparing_failed(sets, monkeypatch):
    from tests.data import tiny_set

    def fail(*arguments):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr("fad.data._prepare.online", lambda: True)
    monkeypatch.setattr(tiny_set.FadTiny, "_split_generators", fail)
    with pytest.raises(ValueError, match="failed with ModuleNotFoundError") as info:
        load(NAME, data_dir=sets / "new")
    assert 'pip install "fad[data]" tensorflow' in str(info.value)


def test_prepared_in_another_place(sets, monkeypatch):
    monkeypatch.setattr("fad.data._prepared.prepare", lambda *arguments: None)
    with pytest.raises(ValueError, match="it was prepared in another place"):
        load("elsewhere")
