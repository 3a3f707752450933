"""Every python block of the README runs, each on its own."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCKS = list(
    re.finditer(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.M)
)


def _line(block: re.Match[str]) -> int:
    return block.string.count("\n", 0, block.start(1))


def test_the_readme_has_examples():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{_line(block)}")
def test_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The empty lines make a traceback point at the README's own line.
    source = "\n" * _line(block) + block[1]
    exec(compile(source, str(README), "exec"), {"__name__": "__main__"})
