import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fad.data import Federated, flip_labels, imbalance, long_tail_sizes

pytestmark = pytest.mark.once

laws = settings(derandomize=True, deadline=None, max_examples=30)
FEDNEST = [6000, 3597, 2157, 1293, 775, 465, 279, 167, 101, 61]
MNIST = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@laws
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40).map(np.array),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_flips_exactly_the_fraction(labels, fraction, seed):
    before = labels.copy()
    noisy = flip_labels(labels, fraction=fraction, classes=5, seed=seed)
    np.testing.assert_array_equal(labels, before)
    assert (noisy != labels).sum() == round(fraction * len(labels))
    assert noisy.dtype == labels.dtype
    assert set(noisy) <= set(range(5))
    again = flip_labels(labels, fraction=fraction, classes=5, seed=seed)
    np.testing.assert_array_equal(noisy, again)


def test_rows_and_new_labels_are_uniform():
    labels = np.arange(20_000) % 5
    noisy = flip_labels(labels, fraction=0.5, seed=0)
    counts = np.zeros((5, 5))
    np.add.at(counts, (labels, noisy), 1)
    expected = np.full((5, 5), 500.0)
    np.fill_diagonal(expected, 2000.0)
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 4
    early = (noisy != labels)[:10_000].sum()
    assert abs(early - 5000) < 4 * np.sqrt(2500)


def test_seed_decides_the_noise():
    labels = np.arange(100) % 5
    first, other = (flip_labels(labels, fraction=0.3, seed=s) for s in (0, 1))
    assert not np.array_equal(first, other)


def test_labels_that_occur_are_the_classes_by_default():
    labels = np.array([7, -3, 7, -3, 40], np.int8)
    noisy = flip_labels(labels, fraction=1.0, seed=0)
    assert set(noisy) <= {7, -3, 40}
    assert noisy.dtype == np.int8
    assert (noisy != labels).all()


def make_clients(sizes):
    n = sum(sizes)
    examples = {"x": np.arange(n), "y": np.arange(n) % 4}
    names = tuple(f"client {i}" for i in range(len(sizes)))
    return Federated(examples, np.cumsum([0, *sizes]), names=names)


def flips(clean, noisy):
    changed = clean.examples["y"] != noisy.examples["y"]
    parts = zip(clean.offsets[:-1], clean.offsets[1:], strict=True)
    return [int(changed[a:b].sum()) for a, b in parts]


def test_the_fraction_holds_within_each_client():
    clean = make_clients([10, 0, 1, 40])
    noisy = flip_labels(clean, fraction=0.2, seed=0)
    assert flips(clean, noisy) == [2, 0, 0, 8]
    np.testing.assert_array_equal(noisy.examples["x"], clean.examples["x"])
    np.testing.assert_array_equal(noisy.offsets, clean.offsets)
    assert noisy.names == clean.names
    assert clean.examples["y"].tolist() == (np.arange(51) % 4).tolist()


def test_each_client_may_have_its_own_fraction():
    clean = make_clients([10, 20, 30])
    noisy = flip_labels(clean, fraction=[0.0, 0.5, 1.0], seed=0)
    assert flips(clean, noisy) == [0, 10, 30]


def test_a_clients_noise_depends_on_its_number_alone():
    few, many = make_clients([10, 20]), make_clients([10, 20, 30])
    a, b = (flip_labels(x, fraction=0.5, seed=0).client(1)["y"] for x in (few, many))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, np.nan, [0.0, 2.0]])
def test_refuses_shares_outside_the_unit_interval(fraction):
    with pytest.raises(ValueError, match=r"flip_labels\(fraction=.*shares in \[0, 1\]"):
        flip_labels(make_clients([2, 2]), fraction=fraction, seed=0)


def test_refuses_other_fractions():
    match = (
        r"\(fraction=\.\.\.\): expected one number or one per client, \[2\]; got flo"
    )
    with pytest.raises(ValueError, match=match):
        flip_labels(make_clients([2, 2]), fraction=[0.1, 0.1, 0.1], seed=0)
    with pytest.raises(ValueError, match=r"expected one number; got float64\[2\]"):
        flip_labels(np.array([0, 1]), fraction=[0.1, 0.1], seed=0)
    with pytest.raises(ValueError, match=r"expected one number; got <U4\[\]"):
        flip_labels(np.array([0, 1]), fraction="half", seed=0)  # type: ignore


@pytest.mark.parametrize(
    "labels",
    [np.zeros(3), np.zeros((3, 1), int), np.zeros(0, int), np.array(3), ["a", "b"]],
)
def test_refuses_labels_that_are_no_integers(labels):
    match = r"\(data=\.\.\.\): expected integer labels \[N\] with N at least 1"
    with pytest.raises(ValueError, match="flip_labels" + match):
        flip_labels(labels, fraction=0.5, seed=0)
    with pytest.raises(ValueError, match=r"imbalance\(labels=\.\.\.\): expected int"):
        imbalance(labels, [1, 1], seed=0)


def test_refuses_clients_without_labels():
    data = Federated({"x": np.arange(4)}, np.array([0, 4]))
    with pytest.raises(ValueError, match=r"in a Federated, the array 'y'\); got None"):
        flip_labels(data, fraction=0.5, seed=0)


def test_refuses_one_label_alone():
    match = r"flip_labels\(\): a label can only .* there is only 3\. Say how many"
    with pytest.raises(ValueError, match=match):
        flip_labels(np.array([3, 3]), fraction=0.5, seed=0)
    with pytest.raises(ValueError, match="there is only 0"):
        flip_labels(np.array([0, 0]), fraction=0.5, classes=1, seed=0)


def test_refuses_labels_beyond_the_classes():
    match = (
        r"flip_labels\(data=\.\.\.\): expected labels in 0\.\.2, as classes .* got 3"
    )
    with pytest.raises(ValueError, match=match):
        flip_labels(np.array([0, 3]), fraction=0.5, classes=3, seed=0)
    with pytest.raises(
        ValueError, match=r"flip_labels\(classes=\.\.\.\): expected a po"
    ):
        flip_labels(np.array([0, 3]), fraction=0.5, classes=0, seed=0)


def test_refuses_classes_that_the_labels_cannot_hold():
    labels = np.array([0, 1], np.uint8)
    assert flip_labels(labels, fraction=1.0, classes=256, seed=0).dtype == np.uint8
    match = r"flip_labels\(classes=257\): the labels are uint8 and cannot hold so many"
    with pytest.raises(ValueError, match=match):
        flip_labels(labels, fraction=1.0, classes=257, seed=0)


def test_fednests_sizes():
    sizes = long_tail_sizes(6000, 10, ratio=0.01)
    assert sizes.dtype == np.int64
    assert sizes.tolist() == FEDNEST
    assert sizes.sum() == 14_895


def test_fednests_mnist():
    """Label 0 has 77 examples less than FedNest's 6,000: kept whole, not made up."""
    labels = np.repeat(np.arange(10), MNIST)
    with pytest.raises(
        ValueError, match=r"\(label 0: 5923 of 6000\)\. Ask for at most"
    ):
        imbalance(labels, FEDNEST, seed=0)
    rows = imbalance(labels, FEDNEST, clip=True, seed=0)
    assert np.bincount(labels[rows]).tolist() == [5923, *FEDNEST[1:]]
    assert len(rows) == 14_818
    # The same number for each of 100 clients as with 14,895.
    assert len(rows) // 100 == sum(FEDNEST) // 100 == 148


@pytest.mark.parametrize(
    ("largest", "classes", "ratio", "sizes"),
    [
        (7, 1, 0.5, [7]),
        (7, 3, 1.0, [7, 7, 7]),
        (8, 4, 0.125, [8, 4, 2, 1]),
        (1, 3, 1e-9, [1, 1, 1]),
    ],
)
def test_long_tails(largest, classes, ratio, sizes):
    assert long_tail_sizes(largest, classes, ratio=ratio).tolist() == sizes


@pytest.mark.parametrize("ratio", [0, -1.0, 1.1, np.nan, "small"])
def test_refuses_ratios(ratio):
    match = r"long_tail_sizes\(ratio=\.\.\.\): expected the last size over the first"
    with pytest.raises(ValueError, match=match):
        long_tail_sizes(10, 2, ratio=ratio)


@pytest.mark.parametrize(
    ("counts", "name"), [((0, 1), "largest"), ((1, 2.0), "classes")]
)
def test_refuses_counts(counts, name):
    match = rf"long_tail_sizes\({name}=\.\.\.\): expected a positive integer"
    with pytest.raises(ValueError, match=match):
        long_tail_sizes(*counts, ratio=0.5)


@laws
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40).map(np.array),
    data=st.data(),
    seed=st.integers(0, 2**32),
)
def test_keeps_the_sizes(labels, data, seed):
    held = np.bincount(labels, minlength=4)
    sizes = [data.draw(st.integers(0, int(n))) for n in held]
    if not any(sizes):
        return
    rows = imbalance(labels, sizes, seed=seed)
    assert np.bincount(labels[rows], minlength=4).tolist() == sizes
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, np.unique(rows))
    np.testing.assert_array_equal(rows, imbalance(labels, sizes, seed=seed))


def test_a_smaller_size_is_a_subset():
    labels = np.arange(100) % 2
    small, large = (imbalance(labels, [n, 20], seed=0) for n in (5, 30))
    assert set(small) < set(large)
    other = imbalance(labels, [5, 20], seed=1)
    assert not np.array_equal(small, other)


def test_keeps_rows_at_random():
    labels = np.zeros(1000, int)
    rows = imbalance(labels, [500], seed=0)
    assert abs(rows.mean() - 500) < 50


@pytest.mark.parametrize("sizes", [[1.0, 2.0], 3, [[1, 2]], []])
def test_refuses_sizes_that_are_no_integers(sizes):
    match = r"imbalance\(sizes=\.\.\.\): expected one integer per label, \[C\]; got "
    with pytest.raises(ValueError, match=match):
        imbalance(np.array([0, 1]), sizes, seed=0)


def test_refuses_negative_sizes():
    with pytest.raises(ValueError, match="expected sizes of at least 0; got -2"):
        imbalance(np.array([0, 1]), [1, -2], seed=0)


def test_refuses_to_keep_nothing():
    match = r"no example is kept; got \[5, 0\] for labels that occur \[0, 2\] times"
    with pytest.raises(ValueError, match=match):
        imbalance(np.array([1, 1]), [5, 0], clip=True, seed=0)


def test_refuses_labels_without_a_size():
    match = r"imbalance\(labels=\.\.\.\): expected labels in 0\.\.1, as sizes .* got 2"
    with pytest.raises(ValueError, match=match):
        imbalance(np.array([0, 2]), [1, 1], seed=0)
