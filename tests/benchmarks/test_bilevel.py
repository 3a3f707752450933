"""The federated bilevel benchmark: its settings load, and its scores are right."""

import json

import numpy as np
import pytest

from algorithms import ALGORITHMS
from benchmarks import _study_page as page
from benchmarks import _study_runs as runs
from benchmarks._bilevel_studies import SHARDS, STUDIES
from benchmarks._report import ROOT
from benchmarks._study import Series, Study
from fad.experiment import load

pytestmark = pytest.mark.once

RUNS = [
    (name, label, split)
    for name, study in STUDIES.items()
    for label, series in study.series.items()
    for split in (series.splits or study.splits)
]


@pytest.mark.parametrize(("name", "label", "split"), RUNS)
def test_every_run_has_a_configuration(name, label, split):
    study = STUDIES[name]
    values = runs.overrides(study, runs.Job("bilevel", name, label, split, 3))
    experiment = load(ROOT / "configs" / study.config, ALGORITHMS, overrides=values)
    assert experiment.seed == experiment.data.seed == 3
    assert experiment.rounds == study.series[label].steps
    json.dumps(study.series[label].settings())


def make_curves(*values, rounds=4, each=1.5):
    steps = 10 * (1 + np.arange(len(values[0])))
    return page.Curves(np.asarray(values), steps * rounds, steps * each, {})


def test_a_target_is_reached_by_a_trailing_mean():
    curves = make_curves([0.0, 0.9, 0.0, 0.6, 0.6, 0.6], [0.6] * 6, [0.1] * 6)
    # (0.9 + 0 + 0.6) / 3 at the fourth evaluation.
    assert curves.rounds_to(0.5).tolist() == [160, 40, np.inf]


def test_the_final_value_is_a_mean_of_the_last():
    assert make_curves([9.0, 1, 2, 3, 4, 5]).final().tolist() == [3.0]


def test_a_run_that_diverged():
    curves = make_curves([0.5] * 5, [0.7, 0.7, np.nan, np.nan, np.nan])
    assert page._final(curves) == "0.5000 ± 0.0000 at 200 (1 diverged)"
    assert curves.rounds_to(0.6).tolist() == [np.inf, 40]
    assert page._final(make_curves([np.nan] * 5)) == "- at 200 (1 diverged)"


def test_cells():
    assert page._rounds(np.array([100.0, 140.0])) == "120 ± 28"
    assert page._rounds(np.array([100.0, np.inf])) == "1 of 2 seeds"


def test_other_settings_are_run_again():
    series = Series({"name": "fednest"}, 5, splits=(SHARDS,))
    study = Study("t", "mnist_fednest.toml", {SHARDS: {}}, {"a": series}, (0.5,))
    own = json.loads(json.dumps(series.settings()))
    found = {"a": {"settings": own}, "gone": {"settings": own}}
    runs.forget(found, study, again=False)
    assert list(found) == ["a"]
    found["a"]["settings"]["steps"] = 6
    runs.forget(found, study, again=False)
    assert not found


@pytest.mark.parametrize(
    ("steps", "expected"), [(20, [10, 20]), (25, [10, 20, 25]), (5, [5])]
)
def test_the_last_step_is_evaluated(steps, expected):
    assert runs.evaluated(Series({}, steps)) == expected


def test_every_kept_curve_has_its_steps():
    for name, study in STUDIES.items():
        kept = json.loads(
            (ROOT / "benchmarks" / "results" / f"bilevel_{name}.json").read_text()
        )
        assert list(kept.keys() - study.series.keys()) == []
        for label, series in kept.items():
            for split in series["splits"].values():
                for run in split["runs"].values():
                    assert run["steps"] == runs.evaluated(study.series[label])
                    assert len(run["accuracy"]) == len(run["steps"])


def test_long_runs_begin_first():
    options = runs.options_of("bilevel", ["hyper_representation", "--seeds", "2"])
    study = STUDIES["hyper_representation"]
    jobs = runs.jobs_of("bilevel", study, options)
    assert jobs[0].series == "FedNest, tau = 5"
    assert len(jobs) == 2 * sum(
        len(s.splits or study.splits) for s in study.series.values()
    )
    paper = runs.options_of("bilevel", ["hyper_representation", "--part", "paper"])
    names = {j.series for j in runs.jobs_of("bilevel", study, paper)}
    assert names == {"FedNest", "LFedNest", "FedNest-SGD", "FedNest, tau = 5"}


def test_a_page_of_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    (tmp_path / "docs" / "experiments").mkdir(parents=True)
    study = STUDIES["hyper_cleaning"]
    run = {"rounds": 6, "bytes": [1000, 2000], "steps": [10, 20], "seconds": 60.0}
    run |= {"accuracy": [0.8, 0.9], "clean_auc": [0.9, 0.97]}
    runs = {"runs": {"0": run, "1": run}}
    gone = run | {"accuracy": [None, None], "clean_auc": [None, None]}
    found = {"AggITD": {"settings": {}, "splits": {SHARDS: runs}}}
    found["FedNest"] = {"settings": {}, "splits": {SHARDS: {"runs": {"0": gone}}}}
    page.write_page("bilevel", "hyper_cleaning", study, found)
    text = (tmp_path / "docs" / "experiments" / "hyper_cleaning.md").read_text()
    assert "| AggITD | 6 | 1 + 2 | 0.8500 ± 0.0000 at 120 | 0.935 ± 0.000 |" in text
    assert "All 3 runs took 3 minutes of one core." in text
    assert (tmp_path / "docs" / "experiments" / "hyper_cleaning.png").exists()
