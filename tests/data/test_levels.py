"""Cohorts of two levels: the same clients in both, drawn once."""

from typing import Any

import jax
import numpy as np
import pytest

from fad.data import Federated, Levels

pytestmark = pytest.mark.once

KEY = jax.random.key(3)


def rows(sizes, start=1):
    offsets = np.cumsum([0, *sizes])
    return Federated({"x": np.arange(start, start + offsets[-1])}, offsets)


def levels(lower=(3, 0, 7, 5, 1, 9), upper=(2, 4, 0, 5, 1, 6)):
    return Levels(rows(lower), rows(upper, start=100))


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def seen(batches, place):
    """The rows of a place that are no padding, in order."""
    return batches.examples["x"][place][batches.mask[place]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": np.array([0, 1, 2, 3, 4, 5])},
        {"replace": True},
        {"available": np.full(6, 0.5)},
    ],
    ids=["uniform", "weights", "replace", "available"],
)
def test_both_levels_are_of_the_clients_that_the_lower_level_draws(options):
    data = levels()
    for t in range(5):
        key = jax.random.fold_in(KEY, t)
        lower, upper = data.cohort(key, 3, batch_size=2, **options).unsafe_gather()
        assert_same(
            lower, data.lower.cohort(key, 3, batch_size=2, **options).unsafe_gather()
        )
        np.testing.assert_array_equal(lower.client, upper.client)
        for place, client in enumerate(lower.client):
            own = data.upper.client(client)["x"] if client >= 0 else []
            assert sorted(seen(upper, place)) == sorted(own)


def test_the_upper_level_is_one_full_batch_unless_told_otherwise():
    data = levels()
    _, upper = data.cohort(KEY, 6, batch_size=2).unsafe_gather()
    assert upper.mask.shape == (6, 1, 6)
    options = {"batch_size": 2, "upper_batch_size": 4, "upper_epochs": 3}
    lower, upper = data.cohort(KEY, 6, **options, epochs=2).unsafe_gather()
    assert lower.mask.shape == (6, 2 * 5, 2)
    assert upper.mask.shape == (6, 3 * 2, 4)
    np.testing.assert_array_equal(upper.mask.sum((1, 2)), 3 * data.upper.sizes)


def test_max_examples_is_the_lower_levels():
    cohort = levels().cohort(KEY, 6, batch_size=2, max_examples=2).unsafe_gather()
    assert cohort.lower.mask.sum((1, 2)).max() == 2
    assert cohort.upper.mask.sum((1, 2)).max() == 6


def test_the_levels_orders_are_apart():
    data = rows([50])
    options = {"batch_size": 5, "upper_batch_size": 5}
    lower, upper = Levels(data, data).cohort(KEY, 1, **options).unsafe_gather()
    assert sorted(seen(lower, 0)) == sorted(seen(upper, 0))
    assert (seen(lower, 0) != seen(upper, 0)).any()


def test_by_size_is_by_the_examples_of_both_levels():
    data = levels(lower=(0, 4, 0), upper=(3, 0, 0))
    options = {"batch_size": 2, "sampling": "size"}
    assert data.cohort(KEY, 2, **options).unsafe_gather().lower.client.tolist() == [
        0,
        1,
    ]
    drawn = np.zeros(3)
    for t in range(200):
        key = jax.random.fold_in(KEY, t)
        cohort = data.cohort(key, 1, replace=True, **options).unsafe_gather()
        drawn[cohort.upper.client[0]] += 1
    assert drawn[2] == 0
    assert abs(drawn[0] / 200 - 3 / 7) < 0.1


def test_empty_clients_and_one_client():
    data = levels(lower=(0, 2), upper=(3, 0))
    lower, upper = data.cohort(KEY, 2, batch_size=2).unsafe_gather()
    assert lower.mask.any((1, 2)).tolist() == [False, True]
    assert upper.mask.any((1, 2)).tolist() == [True, False]
    lower, upper = levels((4,), (2,)).cohort(KEY, 1, batch_size=2).unsafe_gather()
    assert (lower.mask.sum(), upper.mask.sum()) == (4, 2)


def test_stacked_rounds_have_one_shape():
    data = levels()
    options = {"batch_size": 2, "bucket_growth": None}
    cohorts = [data.cohort(jax.random.key(t), 1, **options) for t in range(6)]
    shapes = {str(jax.tree.map(np.shape, c.unsafe_gather())) for c in cohorts}
    assert len(shapes) == 1


@pytest.mark.parametrize("prefetch", [0, 1])
def test_cohorts_resume_exactly(prefetch):
    options: Any = {"batch_size": 2, "upper_batch_size": 3, "upper_epochs": 2}
    with levels().cohorts(KEY, 3, prefetch=prefetch, **options) as whole:
        first = [next(whole).unsafe_gather() for _ in range(5)]
        expected = levels().cohort(jax.random.fold_in(KEY, 5), 3, **options)
        assert_same(first[4], expected.unsafe_gather())
        state = whole.state
        with levels().cohorts(KEY, 3, state=state, **options) as part:
            for _ in range(3):
                assert_same(next(whole).unsafe_gather(), next(part).unsafe_gather())


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ((levels(upper=(2, 4, 0, 5, 2, 5)), {}), "the state is of other clients"),
        ((levels(), {"upper_batch_size": 2}), "the state is of other options"),
        ((levels(), {"upper_epochs": 2}), "the state is of other options"),
    ],
    ids=["clients", "batch", "epochs"],
)
def test_cohorts_refuse_anothers_state(other, match):
    with levels().cohorts(KEY, 3, batch_size=2) as cohorts:
        state = cohorts.state
    data, options = other
    with pytest.raises(ValueError, match=match):
        data.cohorts(KEY, 3, batch_size=2, state=state, **options)


def test_refuses_other_clients():
    match = (
        r"Levels\(lower=\.\.\., upper=\.\.\.\): expected the same clients in both, but "
        r"lower has 2 and upper 3\. Split every client in two by Federated\.split"
    )
    with pytest.raises(ValueError, match=match):
        levels((1, 2), (1, 2, 3))


def test_refuses_another_order():
    one, other = (
        Federated({"x": np.arange(2)}, np.array([0, 1, 2]), names=tuple(names))
        for names in ("ab", "ba")
    )
    match = (
        r"the same clients in the same order, but client 0 is 'a' in lower and 'b' in "
        r"upper"
    )
    with pytest.raises(ValueError, match=match):
        Levels(one, other)
    unnamed = Federated({"x": np.arange(2)}, np.array([0, 1, 2]))
    assert Levels(one, unnamed).num_clients == Levels(one, one).num_clients == 2


@pytest.mark.parametrize("name", ["upper_batch_size", "upper_epochs"])
def test_refuses_no_positive_count(name):
    match = rf"Levels\.cohort\({name}=\.\.\.\): expected a positive integer; got 0"
    with pytest.raises(ValueError, match=match):
        levels().cohort(KEY, 1, batch_size=2, **{name: 0})
