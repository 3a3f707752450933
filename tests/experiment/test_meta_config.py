"""The file of a meta-training, and its command."""

from pathlib import Path

import jax
import pytest

from fad import ConfigError
from fad.experiment import load_meta, main
from fad.experiment._meta_config import dump_meta
from tests.experiment.meta_subjects import federation, meta_training

pytestmark = pytest.mark.once

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(dump_meta(meta_training(steps=2, options={"start": -1.0})))
    return path


def test_roundtrip(file):
    config = load_meta(file)
    assert config == meta_training(steps=2, options={"start": -1.0})
    several = (federation(), federation(label="other", alpha=None, examples=None))
    file.write_text(dump_meta(meta_training(federation=several)))
    assert load_meta(file).federation == several


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("meta_*.toml")), ids=lambda p: p.stem
)
def test_shipped_files_load_and_are_named_like_their_file(path):
    assert load_meta(path).name == path.stem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 5}, "window must divide rounds, got window = 2 and rounds = 5"),
        ({"clip": 0.0}, r"clip must be > 0, got 0\.0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"name": "a/b"}, "name must be a folder name, got 'a/b'"),
        ({"federation": ()}, "expected one or more with different labels, got"),
        ({"federation": (federation(),) * 2}, r"labels, got \['digits', 'digits'\]"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        meta_training(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": 0}, "runs must be >= 1, got 0"),
        ({"alpha": (2.0, 1.0)}, r"alpha: expected 0 < low <= high, got \[2.0, 1.0\]"),
        ({"client_lr": (0.0, 1.0)}, "client_lr: expected 0 < low <= high"),
        ({"examples": 0}, "examples must be >= 1, got 0"),
    ],
)
def test_refuses_a_federation(changes, message):
    with pytest.raises(ValueError, match=message):
        federation(**changes)


def test_refuses_a_wrong_file(file):
    text = file.read_text().replace('"skip"', '"ignore"')
    file.write_text(text)
    with pytest.raises(ConfigError, match="on_divergence: must be one of 'skip'"):
        load_meta(file)


def test_one_command_with_flags_and_resume(file, tmp_path, capsys):
    with jax.numpy_dtype_promotion("standard"):
        main({}, ["meta-train", str(file), "--runs-dir", str(tmp_path), "--clip", "2"])
        assert f"wrote {tmp_path / 'tiny'}" in capsys.readouterr().out
        assert load_meta(tmp_path / "tiny" / "config.toml").clip == 2.0
        assert (tmp_path / "tiny" / "figure.png").exists()
        again = ["--runs-dir", str(tmp_path), "--clip", "2", "--resume"]
        main({}, ["meta-train", str(file), *again])


@pytest.mark.parametrize("argv", [["meta-train"], ["meta-train", "--resume"]])
def test_the_file_comes_first(argv, capsys):
    with pytest.raises(SystemExit):
        main({}, argv)
    assert "give the meta-training's .toml file first" in capsys.readouterr().err
