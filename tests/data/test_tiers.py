"""Tiers of a cohort: equal runs of places, of clients of their own or shuffled."""

from typing import Any

import jax
import numpy as np
import pytest

from fad.data import Federated, Levels

pytestmark = pytest.mark.once

KEY = jax.random.key(5)
SIZES = (3, 0, 7, 5, 1, 9, 2, 4, 6, 8, 3, 2)
OPTIONS: dict[str, Any] = {"batch_size": 2, "epochs": 2}


def ragged(sizes=SIZES):
    offsets = np.cumsum([0, *sizes])
    return Federated({"x": np.arange(1, offsets[-1] + 1)}, offsets)


def drawn(key, size, **options):
    cohort = ragged().cohort(key, size, **OPTIONS, **options)
    return cohort.unsafe_gather().client


def rounds(size, count=40, **options):
    """The tiers' clients in some rounds: ``[count, tiers, places]``."""
    keys = (jax.random.fold_in(KEY, t) for t in range(count))
    clients = np.stack([drawn(key, size, **options) for key in keys])
    return clients.reshape(count, options["tiers"], -1)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("by", ["client", "round"])
@pytest.mark.parametrize(
    "options", [{}, {"sampling": "size"}, {"available": np.full(12, 0.5)}]
)
def test_one_tier_is_as_without(by, options):
    data = ragged()
    plain = data.cohorts(KEY, 6, **OPTIONS, **options)
    tiered = data.cohorts(KEY, 6, tiers=1, tiers_by=by, **OPTIONS, **options)
    assert_same(next(plain).unsafe_gather(), next(tiered).unsafe_gather())
    tiered.restore(plain.state)  # Neither do their checkpoints differ.
    plain.close()
    tiered.close()


def test_the_numbers_stay():
    assert drawn(KEY, 6).tolist() == [3, 4, 5, 7, 10, 11]
    assert drawn(KEY, 6, tiers=3).tolist() == [3, 6, 7, 10, 2, 11]
    shuffled = drawn(KEY, 6, tiers=3, tiers_by="round")
    assert shuffled.tolist() == [5, 10, 4, 7, 11, 3]


def test_a_client_keeps_its_tier_and_each_is_drawn():
    got = rounds(6, tiers=3)
    assert (got % 3 == np.arange(3)[:, None]).all()
    assert (np.diff(got) > 0).all()
    assert set(got.reshape(-1).tolist()) == set(range(12))
    # The tiers' draws are apart: the ranks in them are not the same.
    assert (got[:, 0] // 3 != got[:, 1] // 3).any()


def test_a_tier_is_drawn_by_weight_and_with_replacement():
    weights = np.r_[np.zeros(6), 1, 1, 1, 3, 1, 1]
    options = {"tiers": 3, "sampling": weights, "replace": True}
    got = rounds(12, 150, **options)
    assert got.min() >= 6
    assert (np.diff(got) == 0).any()
    # Tier 0 has the clients 6 and 9, which weigh 1 and 3.
    assert np.mean(got[:, 0] == 9) == pytest.approx(0.75, abs=0.07)


def test_who_cannot_be_reached_leaves_the_last_places_of_the_tier_empty():
    available = np.ones(12, bool)
    available[[0, 3, 6, 1, 4, 7, 10]] = False
    got = drawn(KEY, 12, tiers=3, available=available).reshape(3, 4)
    assert got.tolist() == [[9, -1, -1, -1], [-1, -1, -1, -1], [2, 5, 8, 11]]


def test_by_round_all_places_of_the_usual_clients_are_shuffled():
    available = np.full(12, 0.6)
    tiers = []
    for t in range(40):
        key = jax.random.fold_in(KEY, t)
        options = {"available": available}
        plain = drawn(key, 8, **options)
        got = drawn(key, 8, tiers=4, tiers_by="round", **options)
        assert sorted(got) == sorted(plain)
        tiers.append(got.reshape(4, 2))
    for t in range(4):
        in_tier = np.stack(tiers)[:, t]
        assert (in_tier == -1).any()
        assert len(set(in_tier.reshape(-1).tolist())) > 10


def test_a_clients_batches_do_not_depend_on_its_place():
    options = {"tiers": 4, "tiers_by": "round", "bucket_growth": None}
    shuffled = ragged().cohort(KEY, 12, **OPTIONS, **options).unsafe_gather()
    plain = ragged().cohort(KEY, 12, bucket_growth=None, **OPTIONS).unsafe_gather()
    order = np.argsort(shuffled.client)
    assert (order != np.arange(12)).any()
    assert_same(jax.tree.map(lambda a: a[order], shuffled), plain)


@pytest.mark.parametrize("by", ["client", "round"])
def test_levels_have_the_lower_levels_tiers(by):
    data = ragged()
    options = {"tiers": 3, "tiers_by": by, **OPTIONS}
    lower, upper = Levels(data, data).cohort(KEY, 6, **options).unsafe_gather()
    assert_same(lower, data.cohort(KEY, 6, **options).unsafe_gather())
    np.testing.assert_array_equal(upper.client, lower.client)


@pytest.mark.parametrize("by", ["client", "round"])
@pytest.mark.parametrize("clients", [ragged(), Levels(ragged(), ragged())])
def test_cohorts_resume_with_their_tiers_alone(by, clients):
    with clients.cohorts(KEY, 6, tiers=3, tiers_by=by, **OPTIONS) as cohorts:
        next(cohorts)
        state = cohorts.state
        same = {"state": state, "tiers_by": by, **OPTIONS}
        with clients.cohorts(KEY, 6, tiers=np.int64(3), **same) as again:
            assert_same(next(cohorts).unsafe_gather(), next(again).unsafe_gather())
    other = "round" if by == "client" else "client"
    for options in ({}, {"tiers": 2, "tiers_by": by}, {"tiers": 3, "tiers_by": other}):
        with pytest.raises(ValueError, match="the state is of other options"):
            clients.cohorts(KEY, 6, state=state, **options, **OPTIONS)


WEIGHTS = np.array([1.0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0])
BAD = {
    "divide": (
        {"size": 6, "tiers": 4},
        r"cohort\(size=6, tiers=4\): the tiers are equal runs of places, but 4 does "
        r"not divide 6\. Use a multiple of 4",
    ),
    "zero": ({"tiers": 0}, r"tiers=\.\.\.\): expected a positive integer; got 0"),
    "part": ({"tiers": 1.5}, r"tiers=\.\.\.\): expected a positive integer; got 1\.5"),
    "by": (
        {"tiers_by": "clients"},
        r"cohort\(tiers_by='clients'\): expected 'client' or 'round'",
    ),
    "few": (
        {"size": 4, "tiers": 2, "sampling": WEIGHTS},
        r"cohort\(size=4, tiers=2\): tier 1 needs 2 of the clients whose number is 1 "
        r"modulo 2, and only 1 can be drawn\. Use a smaller size, replace=True, fewer "
        r"tiers, or tiers_by='round'",
    ),
    "none": (
        {"size": 16, "tiers": 16, "replace": True},
        r"tier 12 needs 1 .* and only 0 can be drawn\. Use fewer tiers, or tiers_by",
    ),
}


@pytest.mark.parametrize(("options", "match"), BAD.values(), ids=BAD)
def test_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        drawn(KEY, **{"size": 6, **options})


def test_with_replacement_or_by_round_a_small_tier_is_no_matter():
    options = {"tiers": 2, "sampling": WEIGHTS}
    assert drawn(KEY, 4, replace=True, **options)[2:].tolist() == [7, 7]
    assert (drawn(KEY, 4, tiers_by="round", **options) >= 0).all()
