"""The benchmark of compression: its settings load, and its page says what is."""

import json

import numpy as np
import pytest

from algorithms import ALGORITHMS
from benchmarks import _fedsep_page as page
from benchmarks import _study_runs as runs
from benchmarks._fedsep_studies import STUDIES
from benchmarks._report import ROOT
from benchmarks._study import Series, Study
from fad.experiment import load

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_has_a_configuration(name):
    study = STUDIES[name]
    for label in study.series:
        for split in study.splits:
            job = runs.Job("fedsep", name, label, split, 3)
            path = ROOT / "configs" / study.config
            values = runs.overrides(study, job)
            experiment = load(path, ALGORITHMS, overrides=values)
            assert experiment.cohort == experiment.data.clients == 10
            assert experiment.max_examples == 5 * experiment.batch_size  # I = 5
            assert experiment.epochs == 1
        json.dumps(study.series[label].settings())


def test_every_kept_run_is_of_these_settings():
    for name, study in STUDIES.items():
        path = runs.results_path("fedsep", name)
        kept = json.loads(path.read_text())
        assert kept.keys() == study.series.keys()
        for label, series in kept.items():
            known = json.loads(json.dumps(study.series[label].settings()))
            assert series["settings"] == known
            assert series["splits"].keys() == study.splits.keys()


def kept(*finals, up, down=93_000):
    """Return what is kept of a series: a run per final value, evaluated twice."""
    run = {"rounds": 1, "bytes": [down, up], "flops": 1, "steps": [10, 20]}
    found = {
        str(k): {**run, "accuracy": [0.1, final], "seconds": 30.0}
        for k, final in enumerate(finals)
    }
    return {"settings": {}, "splits": {"one": {"runs": found}}}


def a_study(found):
    series = {label: Series({"name": "fedavg"}, 20) for label in found}
    return Study("t", "mnist_fedsep.toml", {"one": {}}, series, ())


FOUND = {
    "FedAvg": kept(0.95, 0.97, up=93_000),
    "FedSep, subspace: p = 10": kept(0.40, 0.44, up=40, down=40),
    "FedSep, subspace: p = 1,000": kept(0.91, 0.92, up=4_000, down=4_000),
    "Top-K: p = 10": kept(0.20, 0.20, up=40),
    "Top-K: p = 1,000": kept(0.92, 0.92, up=4_000),
    "random-k: p = 1,000": kept(0.97, 0.97, up=4_000),
    "QSGD: 7 levels": kept(0.96, None, up=11_000),
}


def test_a_page_of_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "experiments"
    folder.mkdir(parents=True)
    page.write_page("fedsep", "x", a_study(FOUND), FOUND)
    text = (folder / "fedsep_x.md").read_text()
    assert "| accuracy, % | p = 10 | p = 1,000 |" in text
    assert "| FedSep, subspace | 42.0 ± 2.8 | 91.5 ± 0.7 |" in text
    assert "| random-k | - | 97.0 ± 0.0 |" in text
    assert "| QSGD 7 levels | 0.118 | 96.0 (1 diverged) |" in text
    assert "| Top-K, p = 10 | 0.00043 | 0.04 | 93 |" in text
    assert "Seeds: 2, of the partition too" in text
    assert "after 20 rounds" in text
    assert "All 14 runs took 7 minutes of one core, the longest 30 seconds." in text
    assert "python -m benchmarks fedsep x --seeds 2" in text
    assert (folder / "fedsep_x.png").exists()


def test_what_is_ahead_and_what_is_not():
    text = page._verdict(page.points(a_study(FOUND), FOUND, "one"))
    best = "Best of what sends p numbers up: FedSep, subspace at p = 10; random-k at"
    assert f"{best} p = 1,000." in text
    assert "that is so here at 1 of the 2 p up to 1,000." in text
    assert (
        "FedSep, subspace against Top-K: ahead at p = 10 (+22.0); even at p = 1,000 "
        "(-0.5)." in text
    )
    assert "FedSep, subspace against random-k: behind at p = 1,000 (-5.5)." in text
    assert (
        "Within 5 points of FedAvg from: FedSep, subspace p = 1,000; Top-K p = 1,000; "
        "random-k p = 1,000." in text
    )
    assert "Within 1 point of FedAvg from: FedSep, subspace no p; Top-K no p" in text
    assert "the others send 93 KB in a round or more" in text
    assert "at p = 1,000, with 8.0 KB, 1 / 12 of that: 91.5 ± 0.7 %." in text


def test_a_run_that_diverged_is_a_guess():
    gone, there = np.array([np.nan, np.nan]), np.array([30.0, 32.0])
    assert page.compare(there, gone) == ("ahead", " (+21.0)")
    assert page.compare(gone, there) == ("behind", " (-21.0)")
    assert page.compare(gone, gone) == ("neither above 20 %", "")
    assert page.compare(there[:1], gone) == ("ahead", " (+20.0)")
    assert page.mean(gone) == "diverged"


def test_nothing_is_said_of_what_has_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    (tmp_path / "docs" / "experiments").mkdir(parents=True)
    page.write_page("fedsep", "x", a_study(FOUND), {})
    text = (tmp_path / "docs" / "experiments" / "fedsep_x.md").read_text()
    assert "ahead" not in text
    some = {k: FOUND[k] for k in ("FedAvg", "Top-K: p = 10")}
    assert "FedSep" not in page._verdict(page.points(a_study(some), some, "one"))
