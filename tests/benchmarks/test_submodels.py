"""The benchmark of sub-models: its settings load, and its page says what is."""

import json
import tomllib

import numpy as np
import pytest

from algorithms import ALGORITHMS
from benchmarks import _study_runs as runs
from benchmarks import _submodel_page as page
from benchmarks import submodels
from benchmarks._report import ROOT
from benchmarks._study import Series, Study
from benchmarks._submodel_studies import HIGH, KINDS, LOW, PAPER, STUDIES, WIDTHS
from fad.experiment import load

pytestmark = pytest.mark.once

STUDY = STUDIES["table1"]
LABELS = [label for labels in KINDS.values() for label in labels]


def test_every_method_of_the_table_has_a_kind_and_a_number():
    assert sorted(LABELS) == sorted(PAPER)
    assert all(len(PAPER[label]) == len(STUDY.splits) for label in LABELS)
    assert sorted(STUDY.series) == sorted(LABELS)


@pytest.mark.parametrize("label", STUDY.series)
def test_every_run_has_a_configuration(label):
    job = runs.Job("submodels", "table1", label, HIGH, 3)
    path = ROOT / "configs" / STUDY.config
    experiment = load(path, ALGORITHMS, overrides=runs.overrides(STUDY, job))
    assert experiment.data.set == "cifar10_jpeg"
    assert experiment.data.classes_per_client == 2
    assert experiment.tiers == (1 if label.startswith("homogeneous") else len(WIDTHS))
    assert experiment.seed == experiment.data.seed == 3
    assert len(runs.evaluated(STUDY.series[label])) == 20
    json.dumps(STUDY.series[label].settings())


@pytest.mark.parametrize("name", ["cifar10_table1", "cifar100_table1"])
def test_the_whole_protocol_loads(name):
    file = tomllib.loads((ROOT / "configs" / f"{name}.toml").read_text())
    assert [run["label"] for run in file["run"]] == list(PAPER)
    for run in file["run"]:
        path = ROOT / "configs" / run["config"]
        experiment = load(path, ALGORITHMS, overrides=run.get("set", {}))
        assert (experiment.batch_size, experiment.epochs) == (10, 1)
        assert (experiment.cohort, experiment.data.clients) == (10, 100)
        own = experiment.algorithm
        assert (own.client_lr, own.client_momentum) == (2e-4, 0.9)
        assert (own.client_weight_decay, own.client_clip) == (1e-3, 1.0)
        assert (own.client_lr_falls, own.client_lr_fall) == ((800, 1200), 0.25)
        public = run["label"] in KINDS["public data"]
        assert public or own.labels


def test_every_kept_curve_has_its_steps():
    found = json.loads(runs.results_path("submodels", "table1").read_text())
    assert found.keys() == STUDY.series.keys()
    assert found["FedSep"]["between"]["flops"] > 0
    assert all(found["FedSep"]["choice"].values())
    for label, series in found.items():
        assert series["settings"] == STUDY.series[label].settings()
        assert series["splits"].keys() == STUDY.splits.keys()
        for split in series["splits"].values():
            assert split["runs"]
            for run in split["runs"].values():
                assert run["steps"] == runs.evaluated(STUDY.series[label])
                assert run["flops"] > 0


def kept(*finals, flops=10**6):
    """Return what is kept of a series on one split: a run per final value."""
    run = {"rounds": 1, "bytes": [2000, 1000], "flops": flops, "steps": [10, 20]}
    found = {
        str(k): {**run, "accuracy": [final, final], "seconds": 30.0}
        for k, final in enumerate(finals)
    }
    return {"settings": {}, "splits": {HIGH: {"runs": found}}}


def study_of(*labels):
    series = {label: Series({"refresh": 4}, 20) for label in labels}
    return Study("t", "cifar10_heterofl.toml", {HIGH: {}}, series, ())


def test_a_page_of_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "experiments"
    folder.mkdir(parents=True)
    found = {
        "FedSep": kept(0.5, 0.6, flops=9 * 10**6),
        "HeteroFL": kept(0.4, 0.55),
        "Flash": kept(0.45, 0.5, flops=10**7),
        "homogeneous, largest": kept(0.7, 0.7, flops=10**8),
    }
    found["FedSep"]["between"] = {"flops": 10**6, "bytes": [400, 1000]}
    page.write_page("submodels", "x", study_of(*found), found)
    text = (folder / "fedsep_x.md").read_text()
    assert "| FedSep | slices | 2 | 55.00 ± 7.07 | 3 | 1 + 1 | 71.13 |" in text
    assert "| Flash | masks | 2 | 47.50 ± 3.54 | 4 | 2 + 1 | 67.08 |" in text
    assert (
        "| homogeneous, largest | one size | 2 | 70.00 ± 0.00 | 100 | 2 + 1 |" in text
    )
    said = "FedSep is above the other methods that train a part, in high heterogeneity."
    assert said in text
    assert "it is 7.50 ± 3.54 ahead of HeteroFL and 7.50 ± 3.54 ahead of Flash" in text
    took = "All 8 runs took 4 minutes, one at a time beside other work, the longest 30"
    assert took in text
    assert "Not run: FedDF, DS-FL, Fed-ET, Federated Dropout, ZeroFL, FedDST" in text
    assert "Run it again: `python -m benchmarks submodels x --seeds 2`." in text
    assert (folder / "fedsep_x.png").exists()
    assert (folder / "fedsep_x_rounds.png").exists()


def test_what_does_not_hold_is_said():
    finals = {"FedSep": 0.5, "HeteroFL": 0.6, "FedRolex": 0.5, "Flash": 0.4}
    found = {label: kept(final, final) for label, final in finals.items()}
    text = page.verdict(study_of(*found), found, HIGH)
    assert text.startswith("FedSep is **not** above HeteroFL and FedRolex in high het")
    assert "it is -10.00 ± 0.00 ahead of HeteroFL, 0.00 ± 0.00 ahead of F" in text
    assert page.verdict(study_of(*found), {"FedSep": found["FedSep"]}, LOW) == ""


def test_the_commands_where_seeds_differ():
    found = {"FedSep": kept(0.5, 0.6), "DS-FL": kept(0.4)}
    series = {"FedSep": Series({}, 20), "DS-FL": Series({}, 20, part="others")}
    study = Study("t", "cifar10_heterofl.toml", {HIGH: {}}, series, ())
    assert page._again("submodels x", study, found) == (
        "`python -m benchmarks submodels x --seeds 2 --part paper` and "
        "`python -m benchmarks submodels x --seeds 1 --part others`"
    )


def test_a_run_that_diverged():
    assert page._mean(np.array([0.5, np.nan])) == "0.50 (1 diverged)"
    assert page._mean(np.array([np.nan])) == "diverged"


@pytest.mark.once
def test_rounds_without_a_search_cost_less():
    table = {"name": "fedsep_submodels", "widths": [1.0, 0.5], "mask_steps": 2}
    series = Series(table, 1, set={"tiers": 2})
    study = Study("t", "digits_fedsep_submodels.toml", {"one": {}}, {"a": series}, ())
    found = submodels.between(study, series)
    assert 0 < found["flops"]
    assert 0 < found["bytes"][0]
