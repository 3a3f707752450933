import time

import jax
import numpy as np
import pytest

from fad import AtClients
from fad.data import Federated, partition_dirichlet

SIZES = [0, 1, 7, 100]


def ragged(sizes=SIZES):
    """Clients of these sizes; every value of x and y tells its row, from 1 on."""
    offsets = np.cumsum([0, *sizes])
    rows = np.arange(1, offsets[-1] + 1)
    return Federated(
        {"x": np.stack([rows, rows], 1).astype(np.float32), "y": rows}, offsets
    )


def batches(data, key, size, **options):
    cohort = data.cohort(key, size, **options)
    assert isinstance(cohort, AtClients)
    return cohort.unsafe_gather()


def held(got, i):
    """The rows of client i of a cohort, in the order in which it sees them."""
    return got.examples["y"][i][got.mask[i]]


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


@pytest.mark.parametrize(("batch_size", "epochs"), [(1, 1), (8, 1), (8, 3), (128, 2)])
def test_cohort_holds_every_example_once_per_epoch(getkey, batch_size, epochs):
    data = ragged()
    got = batches(data, getkey(), 4, batch_size=batch_size, epochs=epochs)
    steps = epochs * -(-100 // batch_size)
    assert got.mask.shape == (4, steps, batch_size)
    assert got.examples["x"].shape == (4, steps, batch_size, 2)
    np.testing.assert_array_equal(got.client, np.arange(4))
    for i in range(4):
        of_epochs = np.split(held(got, i), epochs)
        for rows in of_epochs:
            np.testing.assert_array_equal(np.sort(rows), data.client(i)["y"])
    for x, dtype in ((got.examples["x"], np.float32), (got.client, np.int32)):
        assert x.dtype == dtype


def test_each_epoch_has_its_own_order(getkey):
    first, second = np.split(
        held(batches(ragged(), getkey(), 4, batch_size=8, epochs=2), 3), 2
    )
    assert not np.array_equal(first, second)


def test_padding_is_zero(getkey):
    got = batches(ragged(), getkey(), 4, batch_size=8)
    assert not got.examples["x"][~got.mask].any()
    assert not got.examples["y"][~got.mask].any()
    assert (got.examples["y"] > 0).sum() == sum(SIZES)


def test_every_cohort_has_one_shape(getkey):
    data = ragged([3, 50, 0, 1, 9, 2])
    shapes = {
        batches(data, getkey(), 2, batch_size=4, epochs=2).mask.shape for _ in range(10)
    }
    assert shapes == {(2, 2 * 13, 4)}


def test_sampling_is_without_replacement_and_reaches_everyone(getkey):
    data, seen = ragged([1] * 20), set()
    for _ in range(50):
        clients = batches(data, getkey(), 5, batch_size=1).client
        assert (np.diff(clients) > 0).all()
        seen |= set(clients.tolist())
    assert seen == set(range(20))


def test_same_key_same_cohort(getkey):
    data, key = ragged([5] * 30), getkey()
    first, again = (batches(data, key, 4, batch_size=2, epochs=2) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = batches(data, getkey(), 4, batch_size=2, epochs=2)
    assert not np.array_equal(first.client, other.client)


def test_raw_and_typed_keys_give_the_same_cohort():
    data = ragged([5] * 30)
    typed = batches(data, jax.random.key(3), 4, batch_size=2)
    raw = batches(data, jax.random.PRNGKey(3), 4, batch_size=2)
    jax.tree.map(np.testing.assert_array_equal, typed, raw)


def test_other_key_implementations_work():
    got = batches(ragged(), jax.random.key(3, impl="rbg"), 2, batch_size=2)
    assert got.client.shape == (2,)


def test_a_clients_order_does_not_depend_on_the_cohort(getkey):
    data, key = ragged([9, 30, 4, 30]), getkey()
    everyone = batches(data, key, 4, batch_size=8, epochs=2)
    some = batches(data, key, 2, batch_size=8, epochs=2)
    for i, client in enumerate(some.client):
        np.testing.assert_array_equal(held(some, i), held(everyone, client))


def test_a_clients_order_depends_on_the_client(getkey):
    got = batches(ragged([30, 30]), getkey(), 2, batch_size=8)
    assert not np.array_equal(held(got, 0), held(got, 1) - 30)


def test_a_clients_order_does_not_depend_on_the_other_clients(getkey):
    key = getkey()
    few = batches(ragged([30, 5]), key, 2, batch_size=8)
    many = batches(ragged([30, 1, 8]), key, 3, batch_size=8)
    np.testing.assert_array_equal(held(few, 0), held(many, 0))


def test_a_cohort_of_100_from_100_000_clients_takes_milliseconds(getkey):
    data = ragged([0, 5, 20, 3] * 25_000)
    key = getkey()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        data.cohort(key, 100, batch_size=10)
        times.append(time.perf_counter() - start)
    # Some 3 ms on an idle core; the bound leaves room for a busy one.
    assert min(times) < 0.1


def test_describe_counts_clients_and_sizes():
    text = Federated({"x": np.zeros(108)}, np.cumsum([0, *SIZES])).describe()
    assert text == "4 clients, 108 examples; sizes min 0, median 4, max 100"


def test_describe_measures_how_labels_differ():
    y = np.array([0, 0, 0, 1, 1, 1, 0, 1])
    text = Federated({"y": y}, np.array([0, 3, 3, 6, 8])).describe()
    assert text.endswith("label entropy 0.33 bits within clients, 1.00 overall")


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


@pytest.mark.parametrize("i", [-1, 4, 0.5])
def test_refuses_a_client_that_is_not_there(i):
    with pytest.raises(
        ValueError, match=r"client\(i=.*\): expected a client in 0\.\.3"
    ):
        ragged().client(i)


@pytest.mark.parametrize("name", ["size", "batch_size", "epochs"])
@pytest.mark.parametrize("value", [0, -2, 1.5])
def test_refuses_numbers(getkey, name, value):
    options = {"size": 2, "batch_size": 2, "epochs": 1, name: value}
    match = rf"Federated.cohort\({name}=\.\.\.\): expected a positive integer; got"
    with pytest.raises(ValueError, match=match):
        ragged().cohort(getkey(), **options)


def test_refuses_more_clients_than_there_are(getkey):
    with pytest.raises(ValueError, match=r"cohort\(size=5\): .* there are only 4"):
        ragged().cohort(getkey(), 5, batch_size=1)


@pytest.mark.parametrize("key", [0, np.zeros(2), jax.random.split(jax.random.key(0))])
def test_refuses_what_is_no_key(key):
    with pytest.raises(ValueError, match=r"key=\.\.\.\): expected one key, such as"):
        ragged().cohort(key, 2, batch_size=1)


def test_refuses_a_traced_key(getkey):
    @jax.jit
    def sample(key):
        return ragged().cohort(key, 2, batch_size=1).unsafe_gather().mask

    with pytest.raises(ValueError, match="Call cohort outside jit, grad"):
        sample(getkey())
