"""Clients with an exact number of classes."""

import numpy as np
import pytest

from fad.data import partition_classes


@pytest.mark.parametrize(
    ("classes", "each", "shard"), [(10, 2, 250), (10, 5, 100), (100, 20, 25)]
)
def test_reproduces_the_sizes_of_fedrolex(classes, each, shard):
    """CIFAR-10 and CIFAR-100 over 100 clients: equal shards, 500 at each client."""
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % classes)
    parts = partition_classes(labels, 100, classes_per_client=each, seed=0)
    counts = np.array([np.bincount(labels[p], minlength=classes) for p in parts])
    assert set(counts.ravel()) == {0, shard}
    assert set(np.count_nonzero(counts, axis=0)) == {100 * each // classes}
    assert set(counts.sum(axis=1)) == {500}


def test_the_largest_classes_have_the_odd_shards():
    labels = np.repeat([0, 1, 2], [10, 30, 20])
    parts = partition_classes(labels, 4, classes_per_client=2, seed=0)
    holders = [sum(label in labels[part] for part in parts) for label in range(3)]
    assert holders == [2, 3, 3]


def test_all_classes_at_every_client():
    labels = np.arange(40) % 4
    parts = partition_classes(labels, 10, classes_per_client=4, seed=0)
    assert all(sorted(labels[part]) == [0, 1, 2, 3] for part in parts)


def test_takes_texts():
    labels = np.array(["cat", "dog"] * 4)
    parts = partition_classes(labels, 2, classes_per_client=1, seed=0)
    assert [len(set(labels[part])) for part in parts] == [1, 1]


def test_refuses_more_classes_than_labels():
    match = (
        r"classes_per_client=3\): the labels take only 2 different values. Ask for at "
        "most 2"
    )
    with pytest.raises(ValueError, match=match):
        partition_classes(np.arange(9) % 2, 3, classes_per_client=3, seed=0)


def test_refuses_to_lose_classes():
    match = (
        r"classes_per_client=2\): 3 clients with 2 classes each take 6 of the 10 "
        "classes, .* would be lost. Ask for at least 4"
    )
    with pytest.raises(ValueError, match=match):
        partition_classes(np.arange(100) % 10, 3, classes_per_client=2, seed=0)


def test_refuses_more_shards_than_a_class_has_examples():
    labels = np.repeat([5, 7], [3, 20])
    match = (
        "8 clients with 1 classes each cut the class 5 into 4 shards, but it has only "
        "3 examples. Ask for at most 6 clients"
    )
    with pytest.raises(ValueError, match=match):
        partition_classes(labels, 8, classes_per_client=1, seed=0)
    assert len(partition_classes(labels, 6, classes_per_client=1, seed=0)) == 6


def test_refuses_labels_and_counts():
    with pytest.raises(ValueError, match=r"labels=\.\.\.\): expected integers or text"):
        partition_classes(np.zeros(4), 2, classes_per_client=1, seed=0)
    with pytest.raises(ValueError, match=r"clients=\.\.\.\): expected a positive"):
        partition_classes(np.arange(4), 0, classes_per_client=1, seed=0)
    with pytest.raises(ValueError, match=r"per_client=\.\.\.\): expected a positive"):
        partition_classes(np.arange(4), 2, classes_per_client=0, seed=0)
