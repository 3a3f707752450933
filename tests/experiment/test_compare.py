import json
import re

import pytest

from fad import ConfigError, RunError
from fad.experiment import Comparison, _compare, compare, load, read_rows
from fad.experiment._comparison import Entry, slug
from fad.experiment._table import Run, cells, choose
from tests.experiment import fakes
from tests.experiment.fakes import ALGORITHMS

pytestmark = [
    pytest.mark.usefixtures("fake_cost", "fake_task", "no_figure", "config_file"),
    pytest.mark.once,
]

TWO = """\
name = "two"
title = "Two toys"
target_of = "slow"
trace = "server_lr"

[[run]]
label = "slow"
config = "toy.toml"
set = { "algorithm.lr" = 0.1 }

[[run]]
label = "grid"
config = "toy.toml"
set = { algorithm.momentum = 0.5, rounds = 4 }
grid = { "algorithm.lr" = [0.5, 0.9] }
"""


@pytest.fixture
def go(tmp_path):
    def go(text=TWO, **options):
        path = tmp_path / "two.toml"
        path.write_text(text)
        options = {"runs_dir": tmp_path / "runs", "progress": False} | options
        return compare(path, ALGORITHMS, **options)

    return go


@pytest.fixture
def drawn(monkeypatch):
    """The curves that were drawn."""
    taken = []
    plot = _compare.plot

    def spy(curves, *args, **options):
        taken.extend(curves)
        return plot(curves, *args, **options)

    monkeypatch.setattr(_compare, "plot", spy)
    return taken


def test_writes_table_figure_and_runs(go):
    folder = go()
    single = {"slow", "grid-lr-0.5", "grid-lr-0.9"}
    names = {path.name for path in folder.iterdir()}
    assert names == {"figure.png", "table.md", "table.json", *single}
    table = json.loads((folder / "table.json").read_text())
    assert list(table[0]) == [
        "run",
        "final accuracy",
        "best accuracy",
        "rounds to target",
        "MB to target / client",
        "MB down / client",
        "MB up / client",
    ]
    assert [line["MB down / client"] for line in table] == [0.018, 0.012]
    rows = {name: read_rows(folder / name / "metrics.jsonl") for name in single}
    assert table[0]["final accuracy"] == rows["slow"][-1]["accuracy"]
    finals = {k: rows[f"grid-lr-{k}"][-1]["accuracy"] for k in (0.5, 0.9)}
    best = max(finals, key=lambda k: finals[k])
    assert table[1]["run"] == f"grid (lr={best})"
    target = 0.99 * table[0]["final accuracy"]
    reached = next(row for row in rows["slow"] if row.get("accuracy", 0) >= target)
    assert table[0]["rounds to target"] == reached["round"]
    assert table[0]["MB to target / client"] == pytest.approx(4e-3 * reached["round"])
    markdown = (folder / "table.md").read_text().splitlines()
    assert len(markdown) == 4
    assert markdown[1] == "| :-- | --: | --: | --: | --: | --: | --: |"
    config = load(folder / "grid-lr-0.9" / "config.toml", ALGORITHMS)
    assert (config.rounds, config.algorithm.lr, config.algorithm.momentum) == (
        4,
        0.9,
        0.5,
    )


def test_lower_loss_is_better(go):
    folder = go(TWO.replace("trace", 'metric = "loss"\ntrace'))
    table = json.loads((folder / "table.json").read_text())
    rows = [read_rows(folder / f"grid-lr-{k}" / "metrics.jsonl") for k in (0.5, 0.9)]
    assert table[1]["final loss"] == min(r[-1]["loss"] for r in rows)
    assert table[0]["rounds to target"] is not None


def test_without_target_nor_trace(go):
    lines = TWO.splitlines(keepends=True)
    folder = go("".join(lines[:2] + lines[4:]))
    assert "| - |" in (folder / "table.md").read_text()


def test_a_target_given_as_a_number(go):
    folder = go(TWO.replace('target_of = "slow"', "target = 0.2"))
    table = json.loads((folder / "table.json").read_text())
    rows = read_rows(folder / "slow" / "metrics.jsonl")
    reached = next((r for r in rows if r.get("accuracy", 0) >= 0.2), {"round": None})
    assert table[0]["rounds to target"] == reached["round"]


def test_final_metric_is_the_mean_of_the_window(go):
    folder = go(TWO.replace("trace", "window = 2\ntrace"))
    table = json.loads((folder / "table.json").read_text())
    rows = read_rows(folder / "slow" / "metrics.jsonl")
    values = [row["accuracy"] for row in rows if "accuracy" in row]
    means = [values[0], (values[0] + values[1]) / 2, (values[1] + values[2]) / 2]
    assert table[0]["final accuracy"] == pytest.approx(means[-1])
    assert table[0]["best accuracy"] == pytest.approx(max(means))
    target = 0.99 * means[-1]
    reached = next(t for t, v in zip((2, 4, 6), means, strict=True) if v >= target)
    assert table[0]["rounds to target"] == reached


def test_window_chooses_the_point_of_the_grid():
    lucky = [{"round": t, "accuracy": x} for t, x in enumerate((0.1, 0.1, 0.9), 1)]
    steady = [{"round": t, "accuracy": 0.8} for t in (1, 2, 3)]
    entry = Entry(label="a", config="a.toml")
    runs = [Run("lucky", lucky), Run("steady", steady)]
    for window, best in ((1, "lucky"), (2, "steady")):
        comparison = Comparison(name="c", title="C", window=window, run=(entry,))
        assert choose(comparison, entry, runs).best.label == best


def test_prints_the_table(go, capsys):
    go(progress=True)
    out = capsys.readouterr().out
    assert "…" not in out
    for words in ("final best to to MB MB", "run accuracy accuracy target target down"):
        assert words in re.sub(" +", " ", out)
    assert max(map(len, out.splitlines())) <= 80


def test_existing_folder(go):
    go()
    with pytest.raises(RunError, match=r"two: the folder exists and holds figure\.png"):
        go()
    traces = len(fakes.traces)
    go(resume=True)
    assert len(fakes.traces) == traces
    go(overwrite=True)
    assert len(fakes.traces) == traces + 3


def test_grid_point_may_diverge(go):
    text = TWO.replace('"algorithm.lr" = [0.5, 0.9]', '"algorithm.nan_at" = [2, 0, 3]')
    table = json.loads((go(text) / "table.json").read_text())
    assert table[1]["run"] == "grid (nan_at=0)"


def table_of(folder):
    return json.loads((folder / "table.json").read_text())


def test_all_grid_points_diverge(go, drawn):
    text = TWO.replace('"algorithm.lr" = [0.5, 0.9]', '"algorithm.nan_at" = [2, 4]')
    line = table_of(go(text))[1]
    assert line["run"] == "grid (nan_at=4) (diverged at round 4)"
    assert (line["final accuracy"], line["MB down / client"]) == (None, 0.009)
    assert line["best accuracy"] > 0
    assert [c.label for c in drawn if not c.grey] == ["slow", line["run"]]
    assert [row["round"] for row in drawn[-1].rows] == [1, 2, 3]


def test_run_that_diverges_is_shown_up_to_there_and_last(go, drawn, capsys):
    folder = go(
        TWO.replace('"algorithm.lr" = 0.1', '"algorithm.nan_at" = 5'), progress=True
    )
    table = table_of(folder)
    assert table[0]["run"].startswith("grid (lr=")
    assert table[1]["run"] == "slow (diverged at round 5)"
    assert table[1]["final accuracy"] is None
    assert "| slow (diverged at round 5) | - | 0." in (folder / "table.md").read_text()
    # The run that defines the target has no final metric.
    assert [line["rounds to target"] for line in table] == [None, None]
    slow = next(c for c in drawn if c.label == "slow (diverged at round 5)")
    assert [row["round"] for row in slow.rows] == [1, 2, 3, 4]
    assert "slow: round 5: train_loss is nan" in capsys.readouterr().err


def test_run_that_diverges_before_its_first_evaluation(go):
    text = TWO.replace('"algorithm.lr" = 0.1', '"algorithm.nan_at" = 1')
    folder = go(text)
    line = "| slow (diverged at round 1) | - | - | - | - | - | - |"
    assert line in (folder / "table.md").read_text()
    again = table_of(go(text, resume=True))
    assert again == table_of(folder)


def test_every_run_diverges(go):
    text = TWO.replace('"algorithm.lr" = 0.1', '"algorithm.nan_at" = 1')
    text = text.replace('"algorithm.lr" = [0.5, 0.9]', '"algorithm.nan_at" = [1]')
    table = table_of(go(text))
    assert [line["final accuracy"] for line in table] == [None, None]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'label = "grid"',
            'label = "slow"',
            "label 'slow' does not name one run alone",
        ),
        (
            'target_of = "slow"',
            'target_of = "slow"\ntarget = 0.5',
            "give target or target_of, not both",
        ),
        (
            'target_of = "slow"',
            'target_of = "slwo"',
            "target_of: no run is labelled 'slwo'. Did you mean 'slow'? Known labels: ",
        ),
        (
            "trace =",
            "target_fraction = 0\ntrace =",
            "target_fraction must be in (0, 1], got 0.0",
        ),
        ("trace =", "window = 0\ntrace =", "window must be >= 1, got 0"),
        ("[0.5, 0.9]", "0.5", "[run[1]]: grid 'algorithm.lr' must be a list of values"),
        ("[0.5, 0.9]", "[]", "grid 'algorithm.lr' must be a list of values, got []"),
        ("grid = {", "grit = {", "run[1].grit: unknown key. Did you mean 'grid'?"),
        ('set = { "algorithm.lr" = 0.1 }', "set = 3", "run[0].set: expected a table {"),
        (
            '"algorithm.lr" = 0.1',
            '"algorithm.lrr" = 0.1',
            "toy.toml (run 'slow' of ",
        ),
        (
            'config = "toy.toml"',
            'config = "toi.toml"',
            "toi.toml: no such file. Nearest",
        ),
    ],
)
def test_config_message(go, tmp_path, old, new, message):
    assert old in TWO
    with pytest.raises(ConfigError, match=re.escape(message)):
        go(TWO.replace(old, new))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("line", ['metric = "acuracy"\ntrace', 'trace = "acuracy" #'])
def test_unknown_metric(go, line):
    message = "unknown metric 'acuracy'. Did you mean 'accuracy'? Known metrics: "
    with pytest.raises(RunError, match=re.escape(message)):
        go(TWO.replace("trace", line))


def test_slug():
    assert slug("FAD: (a, b)") == "FAD-a-b"


def test_cells():
    line = {"run": "a", "final loss": 1e30, "MB up": 12345.6, "MB down": 0.0123456}
    line |= {"rounds to target": None, "best accuracy": 0.5}
    expected = ["a", "1.000e+30", "12350", "0.01235", "-", "0.5000"]
    assert cells([line]) == [expected]


def test_figure_cannot_be_written(go, tmp_path):
    (tmp_path / "runs" / "two" / "figure.png").mkdir(parents=True)
    with pytest.raises(RunError, match=r"figure\.png: cannot be written: Is a dir"):
        go(overwrite=True)


def test_table_cannot_be_written(go, tmp_path):
    (tmp_path / "runs" / "two" / "table.md").mkdir(parents=True)
    with pytest.raises(RunError, match="two: cannot be written: Is a directory"):
        go(overwrite=True)
