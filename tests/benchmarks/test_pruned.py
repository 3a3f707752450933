"""The benchmark of pruned clients: its settings load, and its page says what is."""

import json

import numpy as np
import pytest

from algorithms import ALGORITHMS
from benchmarks import _pruned_page as page
from benchmarks import _study_runs as runs
from benchmarks._client_memory import client_memory
from benchmarks._pruned_studies import FULL, NAIVE, STUDIES, WIDTHS
from benchmarks._report import ROOT
from benchmarks._study import Series, Study
from fad.experiment import load

pytestmark = pytest.mark.once

RUNS = [(name, label) for name, study in STUDIES.items() for label in study.series]


@pytest.mark.parametrize(("name", "label"), RUNS)
def test_every_run_has_a_configuration(name, label):
    study = STUDIES[name]
    values = runs.overrides(study, runs.Job("pruned", name, label, "i.i.d.", 3))
    experiment = load(ROOT / "configs" / study.config, ALGORITHMS, overrides=values)
    widths = WIDTHS.get(label.split(", ")[-1].split()[0], (1.0,))
    assert experiment.tiers == len(widths)
    assert experiment.seed == experiment.data.seed == 3
    assert len(runs.evaluated(study.series[label])) == 20
    json.dumps(study.series[label].settings())


def test_every_kept_curve_has_its_steps():
    for name, study in STUDIES.items():
        kept = json.loads(runs.results_path("pruned", name).read_text())
        assert kept.keys() == study.series.keys()
        for label, series in kept.items():
            (split,) = series["splits"].values()
            assert len(split["runs"]) == 5
            assert all(series["memory"].values())
            for run in split["runs"].values():
                assert run["steps"] == runs.evaluated(study.series[label])
                assert run["flops"] > 0


def kept(*finals, flops, each, memory):
    """Return what is kept of a series: a run per final value, evaluated twice."""
    run = {"rounds": 1, "bytes": [each, each], "flops": flops, "steps": [10, 20]}
    found = {
        str(k): {**run, "accuracy": [final, final], "seconds": 30.0}
        for k, final in enumerate(finals)
    }
    sizes = {str(width): size for width, size in memory.items()}
    return {"settings": {}, "splits": {"one": {"runs": found}}, "memory": sizes}


def study_of(*labels):
    series = {label: Series({"name": "rabo"}, 20) for label in labels}
    return Study("t", "mnist_rabo.toml", {"one": {}}, series, ())


def test_a_page_of_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "experiments"
    folder.mkdir(parents=True)
    study = study_of("RABO, full", "RABO, .47", "RABO, .47 naive")
    half = {"flops": 5 * 10**9, "each": 500_000, "memory": {1: 4e6, 0.5: 2e6}}
    found = {
        "RABO, full": kept(0.95, 0.97, flops=10**10, each=10**6, memory={1: 4_000_000}),
        "RABO, .47": kept(0.94, 0.96, **half),
        "RABO, .47 naive": kept(0.92, 0.95, **half),
    }
    page.write_page("pruned", "x", study, found)
    text = (folder / "pruned_x.md").read_text()
    assert (
        "| RABO, .47 | 95.00 ± 1.41 | 1.00 ± 0.00 | 100 | 10 + 10 | 3.0 (4.0) |" in text
    )
    assert "with 0.50 of the FLOPs, 0.50 of the bytes and 0.75 of the memory" in text
    assert "1.00 ± 0.00 points behind it, at most 1.5: yes; 1.00 ± 0.00 behind" in text
    assert "1.50 ± 0.71 ahead of the naive average, better: yes." in text
    assert "All 6 runs took 3 minutes of one core, the longest 30 seconds." in text
    assert (folder / "pruned_x.png").exists()


def test_what_does_not_hold_is_said():
    study = study_of("SimFBO", "RABO, full", "RABO, .47", "RABO, .47 naive")
    like = {"flops": 1, "each": 1, "memory": {1: 1}}
    finals = dict(zip(study.series, (0.96, 0.95, 0.94, 0.945), strict=True))
    found = {label: kept(final, final, **like) for label, final in finals.items()}
    text = page._verdict(study, found, "one")
    assert "1.00 ± 0.00 points behind it, at most 1.5: yes;" in text
    assert "2.00 ± 0.00 behind SimFBO, the best of the full models" in text
    assert "at most 1.5: no; and -0.50 ± 0.00 ahead of the naive average" in text
    assert text.endswith("better: no.")


def test_a_run_that_diverged():
    assert page._mean(np.array([0.5, np.nan]), ".2f") == "0.50 ± 0.00 (1 diverged)"
    assert page._mean(np.array([np.nan]), ".2f") == "diverged"


def test_what_is_compared_is_run():
    for study in STUDIES.values():
        assert {*NAIVE, *NAIVE.values()} <= study.series.keys()
        assert {FULL[label] for label in FULL} <= study.series.keys()


@pytest.mark.once
def test_the_memory_of_a_narrow_client():
    series = Series({"name": "rabo", "widths": [1.0, 0.5]}, 1, set={"tiers": 2})
    study = Study("t", "digits_rabo.toml", {"one": {}}, {"a": series}, ())
    found = client_memory(study, series)
    assert list(found) == ["1", "0.5"]
    assert 0 < found["0.5"] < found["1"]
