"""Iid, Dirichlet and shards: what each promises and refuses."""

import numpy as np
import pytest

from fad.data import partition_dirichlet, partition_iid, partition_shards

pytestmark = pytest.mark.once

MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_small_alpha_gives_few_labels_and_empty_clients():
    labels = np.arange(1000) % 10
    parts = partition_dirichlet(labels, 50, alpha=0.01, seed=0)
    assert any(len(part) == 0 for part in parts)
    kinds = [len(np.unique(labels[part])) for part in parts if len(part)]
    assert np.mean(kinds) < 2


def test_large_alpha_gives_every_label_to_every_client():
    labels = np.arange(1000) % 10
    parts = partition_dirichlet(labels, 5, alpha=1e6, seed=0)
    for part in parts:
        np.testing.assert_array_equal(np.bincount(labels[part]), np.full(10, 20))


def test_dirichlet_is_what_it_was():
    """Published numbers depend on it."""
    parts = partition_dirichlet(np.arange(12) % 3, 4, alpha=0.5, seed=0)
    assert [part.tolist() for part in parts] == [
        [7, 10],
        [0, 5, 6, 8],
        [1, 3, 4],
        [2, 9, 11],
    ]


def test_the_minimum_takes_the_first_draw_that_meets_it():
    labels = np.arange(1000) % 10
    any_size = partition_dirichlet(labels, 20, alpha=0.3, seed=0)
    smallest = min(map(len, any_size))
    same = partition_dirichlet(labels, 20, alpha=0.3, minimum=smallest, seed=0)
    other = partition_dirichlet(labels, 20, alpha=0.3, minimum=smallest + 5, seed=0)
    for a, b in zip(any_size, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert smallest + 5 <= min(map(len, other))


def test_refuses_a_minimum_that_no_draw_meets():
    match = (
        r"partition_dirichlet\(minimum=10\): in each of 1000 draws one of the 10 "
        r"clients got fewer .* minimum \* clients <= N, 100 <= 100, is met, but at "
        r"alpha=0.1 .* ask for a smaller minimum"
    )
    with pytest.raises(ValueError, match=match):
        partition_dirichlet(np.arange(100) % 4, 10, alpha=0.1, minimum=10, seed=0)


def test_refuses_a_minimum_that_no_partition_meets():
    match = r"minimum=4\): 3 clients .* need 12, .* only 11. Ask for at most 3\."
    with pytest.raises(ValueError, match=match):
        partition_dirichlet(np.arange(11) % 2, 3, alpha=1.0, minimum=4, seed=0)


@pytest.mark.parametrize("minimum", [-1, 1.0, "1"])
def test_refuses_minimum(minimum):
    match = r"minimum=\.\.\.\): expected an integer of at least 0; got"
    with pytest.raises(ValueError, match=match):
        partition_dirichlet(np.arange(9), 3, alpha=1.0, minimum=minimum, seed=0)


def test_shards_that_fit_the_labels_hold_one_label_each():
    labels = np.arange(100) % 10
    parts = partition_shards(labels, 5, shards_per_client=2, seed=0)
    assert [len(np.unique(labels[part])) for part in parts] == [2] * 5


def test_shards_reproduce_the_sizes_of_fednest():
    """200 shards of 300: 600 at each client, of few digits."""
    labels = np.random.default_rng(0).permutation(np.repeat(range(10), MNIST_COUNTS))
    parts = partition_shards(labels, 100, shards_per_client=2, seed=0)
    assert {len(part) for part in parts} == {600}
    kinds = [len(np.unique(labels[part])) for part in parts]
    assert max(kinds) <= 4
    assert np.mean(kinds) < 2.2


def test_a_client_may_hold_more_shards_than_there_are_labels():
    parts = partition_shards(np.arange(12) % 2, 2, shards_per_client=5, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(12))


@pytest.mark.parametrize("value", [0, -1, 2.0, "3"])
@pytest.mark.parametrize(
    "call",
    [
        lambda bad: partition_iid(10, bad, seed=0),
        lambda bad: partition_dirichlet(np.zeros(10, int), bad, alpha=1.0, seed=0),
        lambda bad: partition_shards(
            np.zeros(10, int), bad, shards_per_client=1, seed=0
        ),
    ],
    ids=["iid", "dirichlet", "shards"],
)
def test_refuses_clients(call, value):
    with pytest.raises(ValueError, match=r"\(clients=\.\.\.\): expected a positive in"):
        call(value)


def test_refuses_n():
    with pytest.raises(
        ValueError, match=r"partition_iid\(n=\.\.\.\): expected .*got 0"
    ):
        partition_iid(0, 1, seed=0)


def test_refuses_more_clients_than_examples():
    match = r"partition_iid\(clients=4\): .* only n=3 examples. Ask for at most 3"
    with pytest.raises(ValueError, match=match):
        partition_iid(3, 4, seed=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan, "1", 1e308])
def test_refuses_alpha(alpha):
    with pytest.raises(
        ValueError, match=r"alpha=\.\.\.\): expected a positive, finite"
    ):
        partition_dirichlet(np.zeros(3, int), 2, alpha=alpha, seed=0)


@pytest.mark.parametrize("labels", [np.zeros((3, 2), int), np.zeros(0, int), 4])
def test_refuses_labels(labels):
    match = r"labels=\.\.\.\): expected one label per example, \[N\]"
    with pytest.raises(ValueError, match=match):
        partition_dirichlet(labels, 2, alpha=1.0, seed=0)
    with pytest.raises(ValueError, match=match):
        partition_shards(labels, 2, shards_per_client=1, seed=0)


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (np.zeros(3), r"float64\[3\]"),
        (np.array([1, "a"], object), "int and str"),
        (np.array([1.5, 2.0], object), "float"),
    ],
)
def test_refuses_labels_that_make_no_groups(labels, given):
    match = rf"labels=\.\.\.\): expected integers or texts, .* got {given}. Numbers"
    with pytest.raises(ValueError, match=match):
        partition_dirichlet(labels, 2, alpha=1.0, seed=0)


def test_refuses_more_shards_than_examples():
    match = (
        "3 clients with 2 shards each need 6 shards, but there are only 5 examples. "
        "Ask for at most 2 clients or 1 shards per client"
    )
    with pytest.raises(ValueError, match=match):
        partition_shards(np.arange(5) % 2, 3, shards_per_client=2, seed=0)


def test_refuses_shards_per_client():
    match = r"shards_per_client=\.\.\.\): expected a positive integer; got 0"
    with pytest.raises(ValueError, match=match):
        partition_shards(np.arange(9) % 2, 3, shards_per_client=0, seed=0)
