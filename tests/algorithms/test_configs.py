"""Every file in configs/ loads, and an experiment runs from its file alone."""

import json
import re
from pathlib import Path

import pytest

from algorithms import ALGORITHMS
from fad import ConfigError
from fad.experiment import dump, load, main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.glob("*.toml"))
COMPARISONS = [f for f in FILES if "[[run]]" in f.read_text()]
META = [f for f in FILES if f.stem.startswith("meta_")]
EXPERIMENTS = [f for f in FILES if f not in COMPARISONS + META]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_loads_and_is_named_like_its_file(path, tmp_path):
    experiment = load(path, ALGORITHMS)
    assert experiment.name == path.stem
    again = tmp_path / "again.toml"
    again.write_text(dump(experiment))
    assert load(again, ALGORITHMS) == experiment


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_a_comparison_names_files_that_are_there(path):
    for name in re.findall(r'config = "(.*?)"', path.read_text()):
        assert CONFIGS / name in EXPERIMENTS


# One of each kind of state: a tangent and a meta-optimizer, moments, two levels, and
# what clients keep.
RESUMED = ("self_tuning_fedavg", "learned_weights", "fedbio", "scaffold")


# Who sends no models, or smaller or sparse ones.
SMALL = ("dsfl", "fedet", "feddst", "fedsep_submodels", "flash", "zerofl")


@pytest.mark.once
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_runs_by_one_command_and_resumes(name, tmp_path, capsys):
    path, rounds = CONFIGS / f"digits_{name}.toml", 2
    flags = ["--runs-dir", str(tmp_path)]
    tiers = load(path, ALGORITHMS).tiers
    if name != "scaffnew":  # which wants all clients
        flags += ["--cohort", str(tiers if tiers > 1 else 5)]
    main(ALGORITHMS, [str(path), *flags, "--rounds", str(rounds)])
    if name in RESUMED:
        rounds = 3
        main(ALGORITHMS, [str(path), *flags, "--rounds", str(rounds), "--resume"])
    folder = tmp_path / path.stem
    rows = [json.loads(r) for r in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rows if "accuracy" in r] == [*range(1, rounds + 1)]
    model = 4 * (64 * 64 + 64 + 64 * 10 + 10)
    small = name in SMALL
    tenth = name == "fedsep"  # of the numbers, both ways
    least = 0.09 if tenth else 0.3 if small else 1
    assert rows[-1]["bytes_down"] >= rounds * model * least
    compressed = tenth or name == "aggregated_fedavg"
    share = 0.1 if compressed else 0.3 if small else 1
    assert rows[-1]["bytes_up"] >= rounds * model * share
    assert (folder / "figure.png").exists()
    assert "accuracy" in capsys.readouterr().out


def test_examples_do_not_weigh_twice():
    path = CONFIGS / "digits_fedavg.toml"
    by_size = {"sampling": "size", "replace": True}
    with pytest.raises(ConfigError, match=r"set algorithm\.weighting = \"uniform\""):
        load(path, ALGORITHMS, overrides=by_size)
    load(path, ALGORITHMS, overrides={**by_size, "algorithm.weighting": "uniform"})


@pytest.mark.once
def test_the_readme_commands_work_in_their_order(tmp_path, monkeypatch, capsys):
    """As typed, one after the other; the comparison is what ``make demo`` runs."""
    monkeypatch.chdir(ROOT)
    lines = re.findall(
        r"^python -m algorithms (.*)$", Path("README.md").read_text(), re.M
    )
    commands = [line.partition("#")[0].split() for line in lines]
    assert [c[0] for c in commands if not c[0].startswith("configs/")] == [
        "list",
        "plan",
        "compare",
    ]
    assert "--overwrite" in commands[-1]
    for command in commands[:-1]:
        runs = command[0].startswith("configs/")
        main(ALGORITHMS, [*command, *(["--runs-dir", str(tmp_path)] if runs else [])])
    rows = (tmp_path / "digits_fedavg" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["round"] == 60
    assert "whole run: 60 steps" in capsys.readouterr().out
