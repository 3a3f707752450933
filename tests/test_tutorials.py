"""The tutorials' files and commands work as they stand, at a small size."""

import pathlib
import re
import shutil
import sys

import jax
import pytest

from algorithms import ALGORITHMS
from fad.experiment import main, read_rows

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tutorials" / "learned_aggregator.md").read_text("utf-8")
SMALL = {
    "meta-train": ["--steps", "2", "--rounds", "4", "--window", "4"],
    "configs/digits_learned_aggregator.toml": ["--rounds", "2", "--cohort", "5"],
}


def _blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.M)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the tutorial says to save, beside the repository's configurations."""
    names = re.findall(r"Save this as `(.*?)`", TEXT)
    for name, block in zip(names, _blocks("python") + _blocks("toml"), strict=True):
        (tmp_path / name).write_text(block)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_aggregator", None)


def test_it_is_40_lines():
    code = "".join(_blocks("python") + _blocks("toml") + _blocks("sh"))
    assert len([line for line in code.splitlines() if line.strip()]) <= 40


def test_every_command_runs(folder):
    prefix = "python -m algorithms "
    for line in "".join(_blocks("sh")).splitlines():
        assert line.startswith(prefix)
        arguments = line.removeprefix(prefix).split()
        with jax.numpy_dtype_promotion("standard"):
            main(ALGORITHMS, [*arguments, *SMALL[arguments[0]]])
    assert (folder / "runs" / "meta_mine" / "figure.png").exists()
    made = folder / "runs" / "digits_learned_aggregator"
    assert [row["round"] for row in read_rows(made / "metrics.jsonl")] == [1, 2]
    assert (made / "figure.png").exists()
