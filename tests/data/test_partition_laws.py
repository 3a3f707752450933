"""What all partitioners have in common, and that they follow their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fad.data import (
    partition_by,
    partition_classes,
    partition_dirichlet,
    partition_hierarchical,
    partition_iid,
    partition_lognormal,
    partition_power_law,
    partition_shards,
    partition_sizes,
)
from fad.data._partition_hierarchical import _draw

pytestmark = pytest.mark.once

laws = settings(derandomize=True, deadline=None, max_examples=30)
seeds = st.integers(0, 2**32)


def random_sizes(n, clients):
    cuts = np.sort(np.random.default_rng(n).integers(0, n + 1, clients - 1))
    return np.diff(cuts, prepend=0, append=n)


def few_classes(labels, clients):
    return min(-(-len(np.unique(labels)) // clients) + 1, len(np.unique(labels)))


# Each with the largest difference of sizes that it promises.
PARTITIONERS = {
    "iid": (lambda y, c, s: partition_iid(len(y), c, seed=s), 1),
    "dirichlet": (lambda y, c, s: partition_dirichlet(y, c, alpha=0.3, seed=s), None),
    "shards": (lambda y, c, s: partition_shards(y, c, shards_per_client=2, seed=s), 2),
    "classes": (
        lambda y, c, s: partition_classes(
            y, c, classes_per_client=few_classes(y, c), seed=s
        ),
        None,
    ),
    "sizes": (
        lambda y, c, s: partition_sizes(len(y), random_sizes(len(y), c), seed=s),
        None,
    ),
    "power_law": (
        lambda y, c, s: partition_power_law(len(y), c, exponent=1.0, seed=s),
        None,
    ),
    "lognormal": (
        lambda y, c, s: partition_lognormal(len(y), c, sigma=1.0, seed=s),
        None,
    ),
    "hierarchical": (
        lambda y, c, s: partition_hierarchical(
            y // 10, y, c, alpha_coarse=0.1, alpha_fine=10.0, seed=s
        ),
        1,
    ),
}


def assert_partition(parts, n, clients):
    assert len(parts) == clients
    for part in parts:
        assert part.dtype == np.int64
        np.testing.assert_array_equal(part, np.sort(part))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@pytest.mark.parametrize("classes", [1, 3, 100])
@pytest.mark.parametrize("clients", [1, 2, 30, 1000])
@pytest.mark.parametrize("name", PARTITIONERS)
def test_every_example_once_and_the_seed_decides(name, clients, classes):
    # Labels skip numbers: some classes are empty.
    labels = np.random.default_rng(0).permutation(np.arange(6000) % classes * 7)
    partition, difference = PARTITIONERS[name]
    first, again, other = (partition(labels, clients, seed) for seed in (0, 0, 1))
    assert_partition(first, len(labels), clients)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    if clients > 1:
        assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    sizes = [len(part) for part in first]
    if difference is not None:
        assert max(sizes) - min(sizes) <= difference
    if name == "sizes":
        np.testing.assert_array_equal(sizes, random_sizes(len(labels), clients))
    if name in ("power_law", "lognormal"):
        assert min(sizes) >= 1


@laws
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40).map(np.array),
    clients=st.integers(1, 10),
    alpha=st.sampled_from([1e-300, 1e-8, 0.01, 0.5, 1.0, 100.0, 1e8]),
    seed=seeds,
)
def test_dirichlet_laws_partition(labels, clients, alpha, seed):
    parts = partition_dirichlet(labels, clients, alpha=alpha, seed=seed)
    assert_partition(parts, len(labels), clients)
    if clients <= len(labels):
        parts = partition_hierarchical(
            labels // 2, labels, clients, alpha_coarse=alpha, alpha_fine=1.0, seed=seed
        )
        assert_partition(parts, len(labels), clients)


@laws
@given(
    n=st.integers(1, 40),
    clients=st.integers(1, 40),
    law=st.sampled_from([0.0, 0.5, 3.0, 1e300]),
    minimum=st.integers(0, 4),
    seed=seeds,
)
def test_laws_of_sizes_partition(n, clients, law, minimum, seed):
    minimum = min(minimum, n // clients)
    for parts in (
        partition_power_law(n, clients, exponent=law, minimum=minimum, seed=seed),
        partition_lognormal(n, clients, sigma=law, minimum=minimum, seed=seed),
    ):
        assert_partition(parts, n, clients)
        assert min(map(len, parts)) >= minimum


@laws
@given(
    clients=st.integers(1, 12), classes=st.integers(1, 8), data=st.data(), seed=seeds
)
def test_classes_deals_exactly_as_many(clients, classes, data, seed):
    each = data.draw(st.integers(-(-classes // clients), classes))
    most = -(-clients * each // classes)
    counts = data.draw(st.lists(st.integers(most, most + 5), min_size=classes,
                                max_size=classes))  # fmt: skip
    labels = np.repeat(np.arange(classes) * 3, counts)
    parts = partition_classes(labels, clients, classes_per_client=each, seed=seed)
    assert_partition(parts, len(labels), clients)
    assert {len(np.unique(labels[part])) for part in parts} == {each}


@laws
@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=40).map(np.array))
def test_by_groups_equal_values(values):
    parts, names = partition_by(values)
    assert_partition(parts, len(values), len(np.unique(values)))
    for part, name in zip(parts, names, strict=True):
        assert set(values[part].tolist()) == {int(name)}


def assert_uniform(quantiles):
    """Chi-square test of quantiles, drawn evenly within steps, on 20 equal bins."""
    observed, _ = np.histogram(quantiles, bins=20, range=(0, 1))
    assert stats.chisquare(observed).pvalue > 0.001


def between(low, high):
    return low + np.random.default_rng(0).uniform(size=len(low)) * (high - low)


@pytest.mark.parametrize("client", [0, 4])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_dirichlet_shares_follow_the_law(alpha, client):
    """One client's share of a label is Beta(alpha, (clients - 1) alpha)."""
    size, labels = 200, np.arange(200 * 20) % 20
    counts = np.concatenate(
        [
            np.bincount(
                labels[partition_dirichlet(labels, 5, alpha=alpha, seed=seed)[client]],
                minlength=20,
            )
            for seed in range(100)
        ]
    )
    law = stats.beta(alpha, 4 * alpha)
    # A share is rounded to the nearest count.
    low, high = law.cdf((counts - 0.5) / size), law.cdf((counts + 0.5) / size)
    assert_uniform(between(low, high))


def test_hierarchical_shares_follow_the_law():
    """Nothing is used up at the first client: its counts are beta-binomial."""
    fine = np.arange(2000) % 20
    first = np.array(
        [
            np.bincount(
                fine[
                    partition_hierarchical(
                        fine // 5, fine, 20, alpha_coarse=0.4, alpha_fine=2.0, seed=seed
                    )[0]
                ],
                minlength=20,
            )
            for seed in range(600)
        ]
    )
    coarse = first[:, :5].sum(axis=1)
    law = stats.betabinom(100, 0.4, 3 * 0.4)
    assert_uniform(between(law.cdf(coarse - 1), law.cdf(coarse)))
    held = coarse > 0
    law = stats.betabinom(coarse[held], 2.0, 4 * 2.0)
    counts = first[held, 0]
    assert_uniform(between(law.cdf(counts - 1), law.cdf(counts)))


def test_drawing_what_was_too_much_again_keeps_the_law():
    """Two draws of three labels that have one example each, one label after another."""
    rng, p = np.random.default_rng(0), np.array([0.6, 0.3, 0.1])
    left = np.ones(3, np.int64)
    missed = np.array([_draw(rng, 2, p, left).argmin() for _ in range(3000)])
    pairs = ((1, 2), (0, 2), (0, 1))  # without the label missed
    expected = [p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b])) for a, b in pairs]
    observed = np.bincount(missed, minlength=3)
    assert stats.chisquare(observed, 3000 * np.array(expected)).pvalue > 0.001


def test_deals_of_classes_are_even():
    """Each client is as likely as any other to hold each class."""
    labels = np.arange(40) % 4
    held = np.zeros((6, 4))
    for seed in range(300):
        parts = partition_classes(labels, 6, classes_per_client=2, seed=seed)
        for client, part in enumerate(parts):
            held[client, np.unique(labels[part])] += 1
    assert stats.chisquare(held.ravel()).pvalue > 0.001
