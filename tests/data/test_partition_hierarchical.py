"""Coarse labels, then fine ones."""

import numpy as np
import pytest

from fad.data import partition_hierarchical

FINE = np.random.default_rng(0).permutation(np.arange(4000) % 20)


def split(coarse, fine, clients=40, *, alpha_coarse=0.1, alpha_fine=10.0):
    return partition_hierarchical(
        coarse,
        fine,
        clients,
        alpha_coarse=alpha_coarse,
        alpha_fine=alpha_fine,
        seed=0,
    )


def test_few_coarse_labels_and_all_their_fine_ones():
    parts = split(FINE // 5, FINE, alpha_coarse=1e-4, alpha_fine=100.0)
    for part in parts[:5]:  # before a coarse label is used up
        coarse = np.bincount(FINE[part] // 5)
        assert coarse.max() > 90
        assert len(np.unique(FINE[part][FINE[part] // 5 == coarse.argmax()])) == 5


def test_large_concentrations_approach_the_iid_partition():
    parts = split(FINE // 5, FINE, 4, alpha_coarse=1e6, alpha_fine=1e6)
    for part in parts:
        shares = np.bincount(FINE[part], minlength=20) / 1000
        np.testing.assert_allclose(shares, 0.05, atol=0.03)


def test_shares_that_vanish_still_fill_every_client():
    parts = split(FINE // 5, FINE, 7, alpha_coarse=1e-300, alpha_fine=1e-300)
    assert {len(part) for part in parts} == {571, 572}


def test_takes_texts_and_any_order_of_labels():
    fine = np.array(["oak", "cat", "elm", "dog"] * 5)
    coarse = np.array(["tree", "animal"] * 10)
    parts = split(coarse, fine, 3)
    assert sorted(map(len, parts)) == [6, 7, 7]


def test_refuses_a_fine_label_under_two_coarse_ones():
    match = (
        r"fine=\.\.\.\): expected each fine label under one coarse label, but 7 stands "
        "under 0 and 1. Give"
    )
    with pytest.raises(ValueError, match=match):
        split(np.array([0, 0, 1]), np.array([3, 7, 7]), 1)


def test_refuses_lengths_labels_and_clients():
    with pytest.raises(ValueError, match=r"fine=\.\.\.\): expected as many .* 3; got"):
        split(np.arange(3), np.arange(4), 1)
    with pytest.raises(ValueError, match=r"coarse=\.\.\.\): expected integers or text"):
        split(np.zeros(3), np.arange(3), 1)
    with pytest.raises(ValueError, match=r"fine=\.\.\.\): expected one label per exam"):
        split(np.arange(3), np.arange(0), 1)
    with pytest.raises(ValueError, match=r"clients=\.\.\.\): expected a positive inte"):
        split(np.arange(3), np.arange(3), 0)
    match = r"clients=4\): at most one client per example, .* only 3 examples. Ask for "
    with pytest.raises(ValueError, match=match + "at most 3"):
        split(np.arange(3), np.arange(3), 4)


@pytest.mark.parametrize("name", ["alpha_coarse", "alpha_fine"])
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_refuses_concentrations(name, value):
    match = rf"{name}=\.\.\.\): expected a positive, finite concentration"
    with pytest.raises(ValueError, match=match):
        split(np.arange(3), np.arange(3), 1, **{name: value})
