"""Train, validation and test of every client: exact, fair to small clients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fad.data import Federated

pytestmark = pytest.mark.once

laws = settings(derandomize=True, deadline=None, max_examples=40)
SHARES = [(0.8, 0.2), (0.8, 0.1, 0.1), (0.5, 0.5), (0.7, 0.2, 0.1), (0.1, 0.3, 0.6)]


def clients_of(sizes, labels=5, seed=0):
    rows = int(np.sum(sizes))
    y = np.random.default_rng(seed).integers(0, labels, rows).astype(np.int32)
    examples = {"row": np.arange(rows), "y": y}
    return Federated(examples, np.cumsum([0, *sizes]))


def rows_by_client(data):
    return [set(data.client(i)["row"].tolist()) for i in range(data.num_clients)]


@laws
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    shares=st.sampled_from(SHARES),
    mode=st.sampled_from([("random", None), ("order", None), ("random", "y")]),
    seed=st.integers(0, 2**32),
)
def test_every_example_is_in_one_part(sizes, shares, mode, seed):
    data = clients_of([60, *sizes])
    by, stratify = mode
    parts = data.split(*shares, seed=seed, by=by, stratify=stratify)
    assert len(parts) == len(shares)
    whole = rows_by_client(data)
    for i, size in enumerate(data.sizes):
        held = [part.client(i)["row"].tolist() for part in parts]
        assert set().union(*held) == whole[i]
        assert sum(map(len, held)) == size
        assert all(rows == sorted(rows) for rows in held)
        for rows, share in zip(held, shares, strict=True):
            assert abs(len(rows) - share * size) < 1


def test_fednest_holds_out_120_of_600():
    data = clients_of([600] * 100, labels=10)
    for stratify in (None, "y"):
        train, test = data.split(0.8, 0.2, seed=0, stratify=stratify)
        assert set(train.sizes) == {480}
        assert set(test.sizes) == {120}


def test_small_clients_keep_their_examples_for_training():
    data = clients_of([1, 2, 3, 4, 5, 10, 100])
    train, validation, test = data.split(0.8, 0.1, 0.1, seed=0)
    assert train.sizes.tolist() == [1, 2, 3, 3, 4, 8, 80]
    assert validation.sizes.tolist() == [0, 0, 0, 1, 1, 1, 10]
    assert test.sizes.tolist() == [0, 0, 0, 0, 0, 1, 10]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9, 1 / 3])
def test_shares_that_floats_miss_are_rounded_as_meant(share):
    data = clients_of([10, 30, 90])
    first, second = data.split(share, 1 - share, seed=0)
    assert first.sizes.tolist() == [round(share * n) for n in (10, 30, 90)]
    assert (first.sizes + second.sizes).tolist() == [10, 30, 90]


def test_stratified_parts_have_their_share_of_every_label():
    data = clients_of([200, 0, 37, 1000], labels=7)
    shares = (0.8, 0.2)
    for part, share in zip(
        data.split(*shares, seed=3, stratify="y"), shares, strict=True
    ):
        for i in range(data.num_clients):
            whole = np.bincount(data.client(i)["y"], minlength=7)
            got = np.bincount(part.client(i)["y"], minlength=7)
            assert (np.abs(got - share * whole) < 1).all()


@laws
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    shares=st.sampled_from([*SHARES, (0.4, 0.3, 0.2, 0.1)]),
    labels=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_stratified_parts_are_as_near_to_their_share_as_said(
    sizes, shares, labels, seed
):
    data = clients_of([60, *sizes], labels=labels, seed=seed)
    parts = data.split(*shares, seed=seed, stratify="y")
    for i in np.flatnonzero(data.sizes).tolist():
        whole = np.bincount(data.client(i)["y"], minlength=labels)
        for place, part in enumerate(parts):
            got = np.bincount(part.client(i)["y"], minlength=labels)
            far = np.abs(got - part.sizes[i] / data.sizes[i] * whole).max()
            assert far < (1 if part is parts[-1] else len(parts) - 1), place


def test_stratified_rare_labels_reach_every_part():
    # Ten labels of one example each: rounding each label alone would test on none.
    data = Federated({"y": np.tile(np.arange(10), 50)}, np.arange(51) * 10)
    _, test = data.split(0.8, 0.2, seed=0, stratify="y")
    assert set(test.sizes) == {2}
    assert set(test.examples["y"].tolist()) == set(range(10))


def test_stratifies_by_text():
    names = np.array(["a", "b"] * 10)
    data = Federated({"role": names}, np.array([0, 20]))
    _, test = data.split(0.8, 0.2, seed=0, stratify="role")
    assert sorted(test.examples["role"].tolist()) == ["a", "a", "b", "b"]


def test_order_keeps_the_end_for_the_last_part():
    train, test = clients_of([5, 10]).split(0.6, 0.4, seed=0, by="order")
    assert train.examples["row"].tolist() == [0, 1, 2, *range(5, 11)]
    assert test.examples["row"].tolist() == [3, 4, *range(11, 15)]


def test_seed_decides():
    data = clients_of([50, 50])
    for stratify in (None, "y"):
        first, again, other = (
            data.split(0.5, 0.5, seed=seed, stratify=stratify)[0].examples["row"]
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("mode", [("random", None), ("random", "y"), ("order", None)])
@pytest.mark.parametrize("seed", [None, -1, 1.5, "0"])
def test_refuses_seed(seed, mode):
    data, (by, stratify) = clients_of([10]), mode
    match = r"split\(seed=\.\.\.\): expected an integer of at least 0; got"
    with pytest.raises(ValueError, match=match):
        data.split(0.5, 0.5, seed=seed, by=by, stratify=stratify)


def test_names_stay():
    data = Federated({"x": np.arange(4)}, np.array([0, 2, 4]), names=("a", "b"))
    assert all(part.names == ("a", "b") for part in data.split(0.5, 0.5, seed=0))


@pytest.mark.parametrize(
    "shares", [(), (1.0,), (0.5, 0.4), (0.5, 0.6), (1.5, -0.5), ("a", "b"), (480, 120)]
)
def test_refuses_shares(shares):
    match = r"split\(\*fractions\): expected shares between 0 and 1 that sum to 1"
    with pytest.raises(ValueError, match=match):
        clients_of([10]).split(*shares, seed=0)


def test_refuses_a_part_without_examples():
    match = r"no client has examples enough for the share 0\.1; the largest has 3"
    with pytest.raises(ValueError, match=match):
        clients_of([1, 3]).split(0.8, 0.1, 0.1, seed=0)


def test_refuses_by():
    with pytest.raises(ValueError, match=r"by='time'\): expected 'random' or 'order'"):
        clients_of([10]).split(0.5, 0.5, seed=0, by="time")


def test_refuses_order_with_labels():
    with pytest.raises(ValueError, match=r"stratify='y', by='order'\): by order"):
        clients_of([10]).split(0.5, 0.5, seed=0, by="order", stratify="y")


def test_refuses_labels_that_are_not_there():
    with pytest.raises(ValueError, match=r"'z'\): there is no such array; .* row, y"):
        clients_of([10]).split(0.5, 0.5, seed=0, stratify="z")


@pytest.mark.parametrize(
    ("labels", "match"),
    [(np.zeros(4), "integers or texts"), (np.zeros((4, 2), int), "one label per")],
)
def test_refuses_labels(labels, match):
    data = Federated({"y": labels}, np.array([0, 4]))
    with pytest.raises(
        ValueError, match=rf"split\(stratify=\.\.\.\): expected {match}"
    ):
        data.split(0.5, 0.5, seed=0, stratify="y")
