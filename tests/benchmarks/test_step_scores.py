"""How the learned server steps are scored."""

import numpy as np
import pytest

from benchmarks import _step_scores
from benchmarks._step_scores import scores, tuned_rounds, tuned_start

pytestmark = pytest.mark.once


def federation():
    """Two seeds, fifty evaluations; accuracy grows to 1 at a rate of each start."""
    t = np.arange(1, 51)[:, None]

    def curves(rates):
        one = np.minimum(1, np.array(rates) * t / 40)
        return np.stack([one, one]).tolist()

    fixed, fast = curves([0.5, 1.0, 0.0]), curves([1.0, 0.85, 0.5])
    return {
        "setting": {"rounds": 80, "starts": [0.1, 1.0, 10.0]},
        "methods": {"fixed": {"accuracy": fixed}, "fast": {"accuracy": fast}},
    }


def test_the_best_fixed_step_and_its_rounds(monkeypatch):
    monkeypatch.setattr(_step_scores, "WINDOW", 1)
    found = federation()
    assert tuned_start(found) == 1
    assert tuned_rounds(found) == (80, 1.0)


def test_rounds_to_the_tuned_accuracy(monkeypatch):
    monkeypatch.setattr(_step_scores, "WINDOW", 1)
    s = scores(federation(), "fast")
    np.testing.assert_allclose(s.ratio, [1.0, 48 / 40, np.inf])
    np.testing.assert_array_equal(s.reached, [2, 2, 0])
    np.testing.assert_allclose(s.final, [1.0, 0.85, 0.5])
    np.testing.assert_allclose(s.spread, 0, atol=1e-12)


def test_evaluations_are_averaged_with_those_before():
    found = federation()
    s = scores(found, "fixed")
    np.testing.assert_allclose(s.final[0], np.mean(0.5 * np.arange(36, 41) / 40))
