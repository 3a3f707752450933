import sys

import numpy as np
import pytest

from fad.data import load_digits


def test_shapes_and_scale():
    for part in load_digits():
        assert part["x"].dtype == np.float32
        assert part["y"].dtype == np.int32
        assert part["x"].shape == (len(part["y"]), 64)
        assert part["x"].min() == 0.0
        assert part["x"].max() == 1.0


def test_every_label_keeps_its_share():
    train, test = load_digits(test_fraction=0.25)
    counts = [np.bincount(part["y"], minlength=10) for part in (train, test)]
    shares = counts[1] / (counts[0] + counts[1])
    np.testing.assert_allclose(shares, 0.25, atol=0.005)


def test_the_parts_are_all_the_digits():
    parts = load_digits()
    assert sum(len(part["y"]) for part in parts) == 1797


def test_seed_decides():
    first, again, other = (load_digits(seed=seed)[1]["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_refuses_test_fraction(fraction):
    with pytest.raises(ValueError, match=r"test_fraction=\.\.\.\): expected a number"):
        load_digits(test_fraction=fraction)


def test_names_the_extra_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r'pip install "fad\[experiments\]"'):
        load_digits()
