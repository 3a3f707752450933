"""Runs of two levels: the run loop, resume, plan and command line, with a toy."""

import dataclasses
import types
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import pytest

import fad
from algorithms import ALGORITHMS
from fad import ConfigError
from fad.experiment import (
    BilevelConfig,
    Experiment,
    _run,
    dump,
    load,
    main,
    read_rows,
    run,
)
from fad.experiment._tasks import build

pytestmark = pytest.mark.once

TOML = """\
name = "two"
rounds = 4
eval_every = 2
checkpoint_every = 2
cohort = 3
availability = 0.7
batch_size = 30
epochs = 1

[algorithm]
name = "toy"

[data]
clients = 4
label_noise = 0.3

[model]
name = "logistic"

[bilevel]
task = "hyper_cleaning"
upper_batch_size = 20
upper_epochs = 2
"""


class State(NamedTuple):
    x: Any
    y: Any

    @property
    def params(self):
        return self.x, self.y


@dataclasses.dataclass(frozen=True)
class Config:
    name: ClassVar[str] = "toy"
    lr: float = 1.0


def toy(config, task):
    """Differentiate through one step on the lower level."""
    solver = fad.solvers.gradient_descent(0.5)
    estimator = fad.estimators.itd(task.problem, solver, steps=1)

    def init(key):
        return State(task.init_upper(key), task.init_lower(key))

    @fad.program
    def step(state, cohort, key):
        start = estimator.init(state.x, state.y, cohort)
        cohorts = jax.tree.map(lambda a: a[None], cohort)
        found = estimator.estimate(state.x, start, cohorts, key)
        x = jax.tree.map(lambda p, h: p - config.lr * h, state.x, found.hypergradient)
        return State(x, found.state.y), {"upper_loss": found.value}

    return fad.Algorithm(init, step)


TOYS: dict[str, Any] = {"toy": types.SimpleNamespace(Config=Config, build=toy)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def go(path, tmp_path, monkeypatch):
    monkeypatch.setattr(_run, "plot_run", lambda *args, **kwargs: None)

    def go(name, **options):
        overrides = {k: options.pop(k) for k in list(options) if k == "rounds"}
        experiment = load(path, TOYS, overrides=overrides)
        made = build(TOYS, experiment)
        return run(experiment, *made, tmp_path / name, progress=False, **options)

    return go


def test_loads_and_dumps(path, tmp_path):
    experiment = load(path, TOYS)
    assert isinstance(experiment.bilevel, BilevelConfig)
    again = tmp_path / "again.toml"
    again.write_text(dump(experiment))
    assert load(again, TOYS) == experiment


def test_resume_gives_the_same_bits(go, tmp_path):
    whole = go("whole")
    go("part", rounds=2)
    part = go("part", resume=True)
    for a, b in zip(
        jax.tree.leaves(whole.state), jax.tree.leaves(part.state), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    rows = read_rows(tmp_path / "part" / "metrics.jsonl")
    for a, b in zip(whole.rows, rows, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    tested = {"accuracy", "loss", "clean_auc"}
    assert [tested <= set(row) for row in rows] == [False, True, False, True]
    assert all("upper_loss" in row for row in rows)


def test_a_flag_replaces_a_value_of_the_table(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(TOYS, ["plan", "two.toml", "--bilevel.upper-batch-size", "7", "--rounds", "9"])
    out = capsys.readouterr().out
    assert "two, one step of toy" in out
    assert "whole run: 9 steps, 36 rounds, 3 of 4 clients in each step" in out
    with pytest.raises(SystemExit):
        main(TOYS, ["plan", "two.toml", "--bilevel.upper-epochs", "0"])
    assert "upper_epochs must be >= 1, got 0" in capsys.readouterr().err


def refused(path, algorithms, text):
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        build(algorithms, load(path, algorithms))
    return str(raised.value)


def test_an_algorithm_of_the_other_number_of_levels_is_refused(path):
    one = TOML.partition("[bilevel]")[0]
    assert refused(path, TOYS, one) == (
        "algorithm.name: 'toy' needs task.problem, which a task of one level does not "
        "have. Add [bilevel] with task = ..., or choose another algorithm."
    )
    assert refused(path, ALGORITHMS, TOML.replace("toy", "fedavg")) == (
        "algorithm.name: 'fedavg' needs task.loss, which a task of two levels does not "
        "have. Leave [bilevel] out, or choose another algorithm."
    )


def test_another_missing_attribute_is_not_hidden(path):
    broken = types.SimpleNamespace(Config=Config, build=lambda c, task: c.nothing)
    with pytest.raises(AttributeError, match="nothing"):
        build({"toy": broken}, load(path, {"toy": broken}))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"bilevel.task": "cleaning"},
            r"bilevel\.task: must be one of .* Did you mean 'hyper_cleaning'\?",
        ),
        (
            {"bilevel.upper_fraction": 0.0},
            r"\[bilevel\]: upper_fraction must be in \(0, 1\), got 0\.0",
        ),
        (
            {"bilevel.fraction": 0.5},
            r"bilevel\.fraction: unknown key\. Did you mean .upper_fr",
        ),
        (
            {"sampling": "size", "bilevel.weighting": "examples"},
            r"by their examples already: set bilevel\.weighting = \"uniform\"",
        ),
    ],
)
def test_messages(path, change, match):
    with pytest.raises(ConfigError, match=match):
        load(path, TOYS, overrides=change)


def test_without_the_table_nothing_is_written_of_it(path):
    path.write_text(TOML.partition("[bilevel]")[0])
    experiment = load(path, TOYS)
    assert isinstance(experiment, Experiment)
    assert experiment.bilevel is None
    assert "bilevel" not in dump(experiment)
