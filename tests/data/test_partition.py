import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fad.data import partition_dirichlet, partition_iid, partition_shards

laws = settings(derandomize=True, deadline=None, max_examples=30)
seeds = st.integers(0, 2**32)
label_arrays = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(np.array)


def assert_partition(parts, n, clients):
    assert len(parts) == clients
    for part in parts:
        assert np.issubdtype(part.dtype, np.integer)
        np.testing.assert_array_equal(part, np.sort(part))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@laws
@given(clients=st.integers(1, 10), spare=st.integers(0, 20), seed=seeds)
def test_iid_is_a_partition_into_equal_parts(clients, spare, seed):
    parts = partition_iid(clients + spare, clients, seed=seed)
    assert_partition(parts, clients + spare, clients)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@laws
@given(
    labels=label_arrays,
    clients=st.integers(1, 10),
    alpha=st.sampled_from([1e-300, 1e-8, 0.01, 0.5, 1.0, 100.0, 1e8]),
    seed=seeds,
)
def test_dirichlet_is_a_partition(labels, clients, alpha, seed):
    parts = partition_dirichlet(labels, clients, alpha=alpha, seed=seed)
    assert_partition(parts, len(labels), clients)


@laws
@given(labels=label_arrays, data=st.data(), seed=seeds)
def test_shards_is_a_partition(labels, data, seed):
    each = data.draw(st.integers(1, len(np.unique(labels))))
    clients = data.draw(st.integers(1, len(labels) // each))
    parts = partition_shards(labels, clients, classes_per_client=each, seed=seed)
    assert_partition(parts, len(labels), clients)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= each


PARTITIONERS = {
    "iid": lambda labels, seed: partition_iid(len(labels), 7, seed=seed),
    "dirichlet": lambda labels, seed: partition_dirichlet(
        labels, 7, alpha=0.3, seed=seed
    ),
    "shards": lambda labels, seed: partition_shards(
        labels, 7, classes_per_client=2, seed=seed
    ),
}


@pytest.mark.parametrize("name", PARTITIONERS)
def test_seed_decides(name):
    labels = np.arange(100) % 10
    first, again, other = (PARTITIONERS[name](labels, seed) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


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


def test_shards_that_fit_the_labels_hold_one_label_each():
    labels = np.arange(100) % 10
    parts = partition_shards(labels, 5, classes_per_client=2, seed=0)
    assert [len(np.unique(labels[part])) for part in parts] == [2] * 5


@pytest.mark.parametrize("value", [0, -1, 2.0, "3"])
@pytest.mark.parametrize(
    "call",
    [
        lambda bad: partition_iid(10, bad, seed=0),
        lambda bad: partition_dirichlet(np.zeros(10), bad, alpha=1.0, seed=0),
        lambda bad: partition_shards(np.zeros(10), bad, classes_per_client=1, seed=0),
    ],
    ids=PARTITIONERS,
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


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
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
        partition_shards(labels, 2, classes_per_client=1, seed=0)


def test_refuses_more_shards_than_examples():
    match = "3 clients with 2 shards each need 6 shards, but there are only 5 examples"
    with pytest.raises(ValueError, match=match):
        partition_shards(np.arange(5) % 2, 3, classes_per_client=2, seed=0)


def test_refuses_more_classes_than_labels():
    match = r"classes_per_client=3\): the labels take only 2 different values"
    with pytest.raises(ValueError, match=match):
        partition_shards(np.arange(9) % 2, 3, classes_per_client=3, seed=0)


def test_refuses_classes_per_client():
    match = r"classes_per_client=\.\.\.\): expected a positive integer; got 0"
    with pytest.raises(ValueError, match=match):
        partition_shards(np.arange(9) % 2, 3, classes_per_client=0, seed=0)
