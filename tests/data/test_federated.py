import tracemalloc
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fad.data import Federated, partition_dirichlet

pytestmark = pytest.mark.once

SIZES = [0, 1, 7, 100]


def ragged(sizes=SIZES, **options):
    """Clients of these sizes; every value of x and y tells its row, from 1 on."""
    offsets = np.cumsum([0, *sizes])
    rows = np.arange(1, offsets[-1] + 1)
    x = np.stack([rows, rows], 1).astype(np.float32)
    return Federated({"x": x, "y": rows}, offsets, **options)


def test_clients_and_sizes():
    data = ragged()
    assert data.num_clients == 4
    np.testing.assert_array_equal(data.sizes, SIZES)
    np.testing.assert_array_equal(data.client(2)["y"], np.arange(2, 9))
    assert data.client(0)["x"].shape == (0, 2)


def test_from_indices_gathers_in_order():
    data = Federated.from_indices(
        {"x": np.arange(10, 15)}, [np.array([4, 0]), np.array([], int), np.array([2])]
    )
    clients = [data.client(i)["x"].tolist() for i in range(3)]
    assert clients == [[14, 10], [], [12]]


def test_from_indices_takes_a_partition():
    labels = np.arange(200) % 10
    parts = partition_dirichlet(labels, 20, alpha=0.1, seed=0)
    data = Federated.from_indices({"y": labels}, parts)
    np.testing.assert_array_equal(data.sizes, [len(part) for part in parts])
    np.testing.assert_array_equal(data.client(3)["y"], labels[parts[3]])


def test_describe_tells_of_sizes_labels_and_names():
    y, x = np.array([0, 0, 0, 1, 1, 1, 0, 1]), np.ones(8, np.float32)
    x[7] = np.nan
    offsets, names = np.array([0, 3, 3, 6, 8]), ("a", "b", "c", "d")
    data = Federated({"x": x, "role": y}, offsets, names=names)
    sizes, missing = data.describe().splitlines()
    assert sizes.startswith("4 clients (1 empty), 8 examples; sizes min 0, median 2.5")
    assert missing == "NaN in x: 1 rows, at d (1)"
    assert "label entropy 0.33 bits within" in data.describe(label="role")


def test_figure_names_the_clients_and_is_written(tmp_path):
    data = Federated({"y": np.arange(4)}, np.array([0, 3, 4]), names=("ann", "bo"))
    drawn = data.figure(path=tmp_path / "clients.png", title="Two")
    assert (tmp_path / "clients.png").stat().st_size > 0
    texts = {t.get_text() for axes in drawn.axes for t in axes.get_xticklabels()}
    assert {"ann", "bo"} <= texts


def test_repr_names_the_arrays():
    assert repr(ragged([1, 2])) == (
        "Federated({x: float32[3,2], y: int64[3]}, num_clients=2)"
    )


BAD_EXAMPLES = {
    "none": {},
    "scalar": {"x": np.float32(1.0)},
    "lengths": {"x": np.zeros(3), "y": np.zeros(2)},
    "empty": {"x": np.zeros((0, 3))},
}


@pytest.mark.parametrize("examples", BAD_EXAMPLES.values(), ids=BAD_EXAMPLES)
@pytest.mark.parametrize(
    "make",
    [
        lambda examples: Federated(examples, np.array([0, 3])),
        lambda examples: Federated.from_indices(examples, [np.array([0])]),
    ],
    ids=["init", "from_indices"],
)
def test_refuses_examples(make, examples):
    match = r"\(examples=\.\.\.\): expected arrays \[N, \*\] that share one N"
    with pytest.raises(ValueError, match=match):
        make(examples)


def test_lengths_that_differ_are_named():
    match = r"got \{'x': float32\[3,2\], 'y': int32\[2\]\}"
    with pytest.raises(ValueError, match=match):
        Federated(
            {"x": np.zeros((3, 2), np.float32), "y": np.zeros(2, np.int32)},
            np.array([0, 3]),
        )


def test_refuses_clients_that_are_all_empty():
    with pytest.raises(ValueError, match="share one N, at least 1"):
        Federated.from_indices({"x": np.zeros(3)}, [np.zeros(0, int)])


BAD_OFFSETS = {
    "rank": (np.zeros((2, 2), int), r"expected integers \[num_clients \+ 1\]"),
    "dtype": (np.array([0.0, 3.0]), r"expected integers .*got float64\[2\]"),
    "short": (np.array([0]), "for at least one client"),
    "start": (np.array([1, 3]), "start at 0 and end at N=3, .*got 1 and 3"),
    "end": (np.array([0, 2]), "start at 0 and end at N=3, .*got 0 and 2"),
    "falls": (
        np.array([0, 2, 1, 3]),
        r"offsets\[1\]=2 is followed by offsets\[2\]=1",
    ),
}


@pytest.mark.parametrize(("offsets", "match"), BAD_OFFSETS.values(), ids=BAD_OFFSETS)
def test_refuses_offsets(offsets, match):
    with pytest.raises(ValueError, match=match):
        Federated({"x": np.zeros(3)}, offsets)


BAD_INDICES = {
    "beyond": (
        np.array([0, 3]),
        r"indices\[1\]\): expected row numbers in 0..2; got 3",
    ),
    "negative": (np.array([-1]), r"expected row numbers in 0..2; got -1"),
    "dtype": (np.array([0.5]), r"expected row numbers \[size\]; got float64\[1\]"),
    "rank": (np.array([[0]]), r"expected row numbers \[size\]; got int64\[1,1\]"),
}


@pytest.mark.parametrize(("part", "match"), BAD_INDICES.values(), ids=BAD_INDICES)
def test_refuses_indices(part, match):
    with pytest.raises(ValueError, match=match):
        Federated.from_indices({"x": np.zeros(3)}, [np.array([0]), part])


@pytest.mark.parametrize("i", [-1, 4, 0.5, 1.0, True, np.True_, "1", None])
def test_refuses_a_client_that_is_not_there(i):
    with pytest.raises(
        ValueError, match=r"client\(i=.*\): expected a client in 0\.\.3"
    ):
        ragged().client(i)


def test_names_follow_the_clients():
    data = ragged([1, 2], names=("a", "b"))
    assert data.names == ("a", "b")
    assert ragged().names is None
    parts = [np.array([0]), np.array([1])]
    data = Federated.from_indices({"x": np.arange(2)}, parts, names=["c", "d"])
    assert data.names == ("c", "d")


@pytest.mark.parametrize("i", [2, np.int32(2), jnp.int32(2)])
def test_a_client_by_any_integer(i):
    assert ragged().client(i)["y"].tolist() == list(range(2, 9))


@pytest.mark.parametrize("names", ["ab", (1, 2), 5, b"ab", {"a", "b"}])
@pytest.mark.parametrize("gathered", [False, True])
def test_refuses_names_that_are_no_texts(names, gathered):
    x, parts = {"x": np.arange(2)}, [np.array([0]), np.array([1])]
    make = partial(Federated.from_indices, x, parts) if gathered else ragged
    match = r"Federated\(names=\.\.\.\): expected one text per client; got"
    with pytest.raises(ValueError, match=match):
        make(names=names)


def test_names_from_anything_in_order():
    for names in (iter("ab"), ["a", "b"], np.array(["a", "b"])):
        assert ragged([1, 2], names=names).names == ("a", "b")


def masked() -> dict[str, Any]:
    return {"x": np.ma.masked_array(np.arange(3.0), [False, True, False])}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Federated(masked(), np.array([0, 3])),
        lambda: Federated.from_indices(masked(), [np.arange(3)]),
    ],
    ids=["init", "from_indices"],
)
def test_refuses_masked_arrays(make):
    match = r"expected plain arrays, but 'x' is a masked one.*by x\.filled\(value\)"
    with pytest.raises(ValueError, match=match):
        make()


def test_refuses_another_number_of_names():
    with pytest.raises(ValueError, match=r"one name per client, 2; got 1\."):
        ragged([1, 2], names=("a",))


def test_arrays_are_not_copied():
    x, offsets = np.zeros((6, 2), np.float32), np.array([0, 2, 6])
    data = Federated({"x": x}, offsets)
    assert data.examples["x"] is x
    assert data.pooled()["x"] is x
    assert np.shares_memory(data.client(1)["x"], x)


def test_memory_is_that_of_the_arrays():
    x = np.zeros((20_000, 60), np.float32)
    parts = list(np.random.default_rng(0).permutation(20_000).reshape(1000, 20))
    tracemalloc.start()
    data = Federated({"x": x}, np.arange(1001) * 20)
    assert tracemalloc.get_traced_memory()[1] < 0.02 * x.nbytes
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    gathered = Federated.from_indices({"x": x}, parts)
    held, peak = (size - before for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert held < 1.02 * x.nbytes
    # One copy, and two row numbers of 8 bytes for each row of 240.
    assert peak < 1.15 * x.nbytes
    assert gathered.num_clients == data.num_clients


def test_take_keeps_clients_in_the_order_given():
    data = ragged(names=("a", "b", "c", "d")).take(np.array([3, 0, 2]))
    assert data.names == ("d", "a", "c")
    np.testing.assert_array_equal(data.sizes, [100, 0, 7])
    np.testing.assert_array_equal(data.client(2)["y"], np.arange(2, 9))
    np.testing.assert_array_equal(data.client(0)["x"], ragged().client(3)["x"])
    assert not np.shares_memory(data.examples["y"], ragged().examples["y"])


BAD_CLIENTS = {
    "bools": (np.array([True, False]), r"got bool\[2\]. For bools pass np.flatnonzero"),
    "floats": ([0.5], "expected numbers of clients; got list"),
    "beyond": ([1, 4], r"expected clients in 0\.\.3; got 4"),
    "negative": ([-1], r"expected clients in 0\.\.3; got -1"),
    "twice": ([2, 1, 2], "client 2 stands there more than once"),
    "none": ([], "these 0 clients hold no example"),
    "empty": ([0], "these 1 clients hold no example"),
}


@pytest.mark.parametrize(("clients", "match"), BAD_CLIENTS.values(), ids=BAD_CLIENTS)
def test_refuses_to_take(clients, match):
    with pytest.raises(ValueError, match=rf"take\(clients=\.\.\.\): .*{match}"):
        ragged().take(clients)
