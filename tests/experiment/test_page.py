"""A comparison as a page of documentation."""

import pytest

from fad.experiment import compare
from tests.experiment.fakes import ALGORITHMS

pytestmark = pytest.mark.usefixtures(
    "fake_cost", "fake_task", "no_figure", "config_file"
)

TEXT = """\
# A toy that goes nowhere.
# It does so quickly.
name = "two"
title = "Two toys"
window = 2
{target}

# Not said on the page.
[[run]]
label = "toy"
config = "toy.toml"
"""


def page(tmp_path, target=""):
    path = tmp_path / "two.toml"
    path.write_text(TEXT.format(target=target))
    folder = tmp_path / "pages" / "toys"
    compare(path, ALGORITHMS, runs_dir=tmp_path, progress=False, page=folder)
    return folder, (folder / "two.md").read_text()


def test_has_introduction_command_table_and_figure(tmp_path):
    folder, text = page(tmp_path)
    introduction = "A toy that goes nowhere.\nIt does so quickly."
    assert text.startswith(f"# Two toys\n\n{introduction}\n\n```sh\n")
    assert f"python -m algorithms compare {tmp_path / 'two.toml'}\n" in text
    assert (tmp_path / "two" / "table.md").read_text() in text
    assert "The metric is accuracy, the mean of its last 2 evaluations. MB are" in text
    assert text.endswith("\n\n![Two toys](two.png)\n")
    assert "Not said" not in text
    png = (tmp_path / "two" / "figure.png").read_bytes()
    assert (folder / "two.png").read_bytes() == png


def test_names_the_target(tmp_path):
    _, text = page(tmp_path, target="target = 0.25")
    assert "The target is 0.2500." in text
