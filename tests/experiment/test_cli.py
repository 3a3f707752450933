import os
import re
import signal
import sys

import pytest

from fad import RunError
from fad.experiment import DataConfig, _lazy, load, main, read_rows
from tests.experiment import fakes
from tests.experiment.fakes import ALGORITHMS, Config, experiment

pytestmark = [
    pytest.mark.usefixtures("fake_cost", "fake_task", "no_figure"),
    pytest.mark.once,
]


@pytest.fixture
def cli(tmp_path, config_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *argv: main(ALGORITHMS, list(argv))


def fails(capsys, cli, *argv, code=2):
    with pytest.raises(SystemExit) as raised:
        cli(*argv)
    assert raised.value.code == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def test_flags_go_before_the_file_before_the_defaults(cli, tmp_path, capsys):
    flags = ["--rounds", "3", "--algorithm.lr", "0.25", "--data.clients=5"]
    cli("toy.toml", *flags, "--runs-dir", "out")
    loaded = load(tmp_path / "out" / "toy" / "config.toml", ALGORITHMS)
    assert loaded == experiment(
        rounds=3, algorithm=Config(lr=0.25), data=DataConfig(clients=5)
    )
    captured = capsys.readouterr()
    assert "wrote out/toy" in captured.out
    assert "accuracy" in captured.out
    assert "round 3/3" in captured.err


def test_resume_and_overwrite(cli, tmp_path, capsys):
    cli("toy.toml", "--rounds", "2")
    assert "error: runs/toy: the folder exists" in fails(capsys, cli, "toy.toml")
    cli("toy.toml", "--resume")
    assert len(read_rows(tmp_path / "runs" / "toy" / "metrics.jsonl")) == 6
    cli("toy.toml", "--overwrite", "--rounds=1", "--no-progress")
    assert len(read_rows(tmp_path / "runs" / "toy" / "metrics.jsonl")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_a_checkpoint(cli, capsys, fake_task, monkeypatch, number):
    class Clients(fakes.Clients):
        def cohort(self, *args, **options):
            os.kill(os.getpid(), number)
            return super().cohort(*args, **options)

    whole = fake_task.train
    fake_task.train = Clients()
    err = fails(capsys, cli, "toy.toml", code=130)
    assert "runs/toy: stopped after round 1 of 6; continue with --resume" in err
    fake_task.train = whole
    cli("toy.toml", "--resume")


def test_interrupt_elsewhere(cli, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fad.experiment._cli.load", interrupt)
    assert fails(capsys, cli, "toy.toml", code=130) == "interrupted\n"


@pytest.mark.parametrize("argv", [[], ["list"], ["--help"], ["-h"]])
def test_overview(cli, capsys, tmp_path, argv):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.toml").touch()
    cli(*argv)
    out = capsys.readouterr().out
    assert "python -m algorithms compare COMPARISON.toml" in out
    assert re.search("  toy +A registry entry", out)
    assert "  configs/digits.toml" in out


def test_help_of_an_experiment_shows_the_values_of_the_file(cli, capsys):
    with pytest.raises(SystemExit) as raised:
        cli("toy.toml", "--help")
    assert raised.value.code == 0
    out = capsys.readouterr().out
    for text in ("--algorithm.lr", "--rounds", "6", "--resume", "federated rounds"):
        assert text in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--rounds", "3"],
            "error: give the experiment's .toml file before the flags, ",
        ),
        (["compare"], "error: compare: give the comparison's .toml file first"),
        (["compare", "--resume"], "error: compare: give the comparison's .toml file"),
        (["comapre"], "error: unknown command 'comapre'. Did you mean 'compare'? "),
        (["toi.toml"], "error: toi.toml: no such file. Nearest in .: toy.toml."),
        (["toy.toml", "--resume"], "error: runs/toy: nothing to resume"),
        (["toy.toml", "--roundz", "3"], "--rounds"),
        (["toy.toml", "--rounds", "x"], "invalid literal"),
        (["toy.toml", "--rounds", "0"], "rounds must be >= 1, got 0"),
    ],
)
def test_message(cli, capsys, argv, message):
    assert message in fails(capsys, cli, *argv)


def test_compare(cli, capsys, tmp_path):
    (tmp_path / "c.toml").write_text(
        'name = "c"\ntitle = "C"\n[[run]]\nlabel = "a"\nconfig = "toy.toml"\n'
    )
    cli("compare", "c.toml", "--no-progress")
    assert capsys.readouterr().out == "wrote runs/c\n"
    assert (tmp_path / "runs" / "c" / "figure.png").exists()


def test_compare_writes_a_page(cli, tmp_path):
    (tmp_path / "c.toml").write_text(
        'name = "c"\ntitle = "C"\n[[run]]\nlabel = "a"\nconfig = "toy.toml"\n'
    )
    cli("compare", "c.toml", "--no-progress", "--page", "docs")
    assert (tmp_path / "docs" / "c.md").read_text().startswith("# C\n")


def test_compare_help(cli, capsys):
    with pytest.raises(SystemExit):
        cli("compare", "--help")
    assert "--runs-dir" in capsys.readouterr().out


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    message = (
        r"experiments need the package 'tyro', .* pip install \"fad\[experiments\]"
    )
    with pytest.raises(RunError, match=message):
        _lazy.require("tyro")


def test_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["algorithms", "list"])
    main(ALGORITHMS)
    assert "algorithms:" in capsys.readouterr().out
