"""Cohorts: who takes part, in what order their examples come, how they are padded."""

import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import AtClients
from fad.data import Federated

pytestmark = pytest.mark.once

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


def test_every_cohort_has_one_shape_without_buckets(getkey):
    data = ragged([3, 50, 0, 1, 9, 2])
    options = {"batch_size": 4, "epochs": 2, "bucket_growth": None}
    shapes = {batches(data, getkey(), 2, **options).mask.shape for _ in range(10)}
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
    # Some 2 ms on an idle core; the bound leaves room for a busy one.
    assert min(times) < 0.1


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


@pytest.mark.parametrize(
    "key",
    [
        0,
        np.zeros(2),
        jax.random.split(jax.random.key(0)),
        np.zeros(0, np.uint32),
        np.zeros(3, np.uint32),
    ],
)
def test_refuses_what_is_no_key(key):
    with pytest.raises(ValueError, match=r"key=\.\.\.\): expected one key, such as"):
        ragged().cohort(key, 2, batch_size=1)


def test_refuses_a_traced_key(getkey):
    @jax.jit
    def sample(key):
        return ragged().cohort(key, 2, batch_size=1).unsafe_gather().mask

    with pytest.raises(ValueError, match="Call it outside jit, grad"):
        sample(getkey())


def test_numbers_are_those_of_the_first_release():
    got = batches(ragged([6] * 9), jax.random.key(3), 2, batch_size=4, epochs=2)
    assert got.client.tolist() == [4, 8]
    rows = [29, 27, 28, 25, 30, 26, 27, 30, 25, 26, 28, 29]
    assert held(got, 0).tolist() == rows


LADDER = {1: 1, 8: 1, 9: 2, 16: 2, 24: 3, 32: 4, 40: 5, 56: 7, 57: 13, 100: 13}


@pytest.mark.parametrize(("largest", "steps"), LADDER.items())
def test_steps_are_the_smallest_bucket_that_holds_the_cohort(getkey, largest, steps):
    # Buckets of 13, 7, 4, 2 and 1 steps of 8 examples.
    bucket = min(b for b in (13, 7, 4, 2, 1) if b >= steps)
    data = ragged([100, largest])
    got = batches(data, getkey(), 1, batch_size=8, epochs=3, sampling=[0.0, 1.0])
    assert got.mask.shape == (1, 3 * bucket, 8)
    assert got.mask.sum() == 3 * largest


def test_growth_decides_the_buckets(getkey):
    data, key = ragged([100, 30]), getkey()
    for growth, steps in ((1.5, 30), (2.0, 50), (10, 100), (None, 100), (1.001, 30)):
        options = {"sampling": [0, 1], "bucket_growth": growth}
        got = batches(data, key, 1, batch_size=1, **options)
        assert got.mask.shape == (1, steps, 1)


def test_compilations_are_bounded(getkey):
    rng = np.random.default_rng(0)
    data = ragged(np.rint(np.exp(rng.uniform(0, 7, 300))).astype(int))
    most = -(-data.sizes.max() // 4)
    traces = []

    @jax.jit
    def count(cohort):
        traces.append(cohort.unsafe_gather().mask.shape)
        return cohort.unsafe_gather().mask.sum()

    for _ in range(60):
        count(data.cohort(getkey(), 2, batch_size=4))
    assert 4 <= len(traces) <= np.ceil(np.log2(most)) + 1
    assert len(set(traces)) == len(traces)


def test_results_do_not_depend_on_the_bucket(getkey):
    data, key = ragged([1000, 7, 3, 0]), getkey()
    results = []
    for growth in (2.0, 1.3, None):
        options = {"batch_size": 4, "epochs": 2, "sampling": [0, 1, 1, 1]}
        got = batches(data, key, 3, bucket_growth=growth, **options)
        results.append([held(got, i).tolist() for i in range(3)])
        np.testing.assert_array_equal(got.client, [1, 2, 3])
    assert results[0] == results[1] == results[2]


def test_growth_of_any_kind_of_number(getkey):
    key = getkey()
    plain = batches(ragged(), key, 2, batch_size=2, bucket_growth=2.0)
    for growth in (2, np.int64(2), np.float32(2)):
        got = batches(ragged(), key, 2, batch_size=2, bucket_growth=growth)
        jax.tree.map(np.testing.assert_array_equal, plain, got)


@pytest.mark.parametrize("replace", ["no", 0, 1, None, np.array([True])])
def test_refuses_replace(getkey, replace):
    with pytest.raises(ValueError, match=r"replace=\.\.\.\): expected a bool; got"):
        ragged().cohort(getkey(), 2, batch_size=2, replace=replace)


@pytest.mark.parametrize(
    "growth", [1.0, 0, True, -2.0, np.inf, np.nan, "2", np.complex64(2)]
)
def test_refuses_bucket_growth(getkey, growth):
    match = r"bucket_growth=\.\.\.\): expected a finite number above 1, or None"
    with pytest.raises(ValueError, match=match):
        ragged().cohort(getkey(), 2, batch_size=2, bucket_growth=growth)


def test_replacement_repeats_clients_with_their_batches(getkey):
    data, key = ragged([5, 9, 3]), getkey()
    got = batches(data, key, 12, batch_size=2, replace=True)
    assert got.client.shape == (12,)
    assert (np.diff(got.client) >= 0).all()
    once = batches(data, key, 3, batch_size=2)
    for place, client in enumerate(got.client):
        assert held(got, place).tolist() == held(once, client).tolist()


def shares(data, count, size, **options):
    """How often each client was drawn, as a share of the places."""
    drawn = np.zeros(data.num_clients)
    for t in range(count):
        got = batches(data, jax.random.key(t), size, batch_size=50, **options)
        np.add.at(drawn, got.client[got.client >= 0], 1)
    return drawn / (count * size)


def test_by_size_with_replacement_is_proportional():
    data = ragged([0, 10, 20, 70])
    got = shares(data, 200, 20, sampling="size", replace=True)
    np.testing.assert_allclose(got, [0, 0.1, 0.2, 0.7], atol=0.03)


def test_by_size_with_replacement_the_plain_mean_is_unbiased():
    data = ragged([0, 10, 20, 70])
    client = np.array([5.0, 1.0, -2.0, 3.0])
    means = [
        client[
            batches(
                data,
                jax.random.key(t),
                5,
                batch_size=50,
                sampling="size",
                replace=True,
            ).client
        ].mean()
        for t in range(600)
    ]
    expected = (client * data.sizes).sum() / data.sizes.sum()
    assert abs(np.mean(means) - expected) < 4 * np.std(means) / 600**0.5


def test_weights_without_replacement_draw_one_after_the_other():
    # Successive sampling of 2 of 3: who is left out follows from the two draws.
    w = np.array([0.5, 0.3, 0.2])
    got = shares(ragged([1, 1, 1]), 1500, 2, sampling=w)
    taken = [
        w[i] + sum(w[j] * w[i] / (1 - w[j]) for j in range(3) if j != i)
        for i in range(3)
    ]
    np.testing.assert_allclose(2 * got, taken, atol=0.04)


def test_weights_may_be_huge_tiny_or_whole(getkey):
    for weights in (
        [1e308, 1e308, 0, 0],
        [1.0, 1e-310, 0, 0],
        [3, 4, 0, 0],
        np.array([True, True, 0, 0]),
    ):
        got = batches(ragged(), getkey(), 2, batch_size=9, sampling=weights)
        assert got.client.tolist() == [0, 1]


BAD_SAMPLING = {
    "name": ("sizes", r"sampling='sizes'\): expected 'uniform', 'size' or weights"),
    "shape": (np.ones(3), r"one weight per client, \[4\]; got float64\[3\]"),
    "text": (np.array(["a"] * 4), r"one weight per client, \[4\]; got <U1\[4\]"),
    "negative": ([1, 1, -1, 1], r"not negative; got -1\.0 for client 2"),
    "nan": ([1, 1, np.nan, 1], r"finite and not negative; got nan for client 2"),
    "few": ([1, 0, 0, 1], "3 clients must have a positive weight, but only 2 of 4"),
}


@pytest.mark.parametrize(("value", "match"), BAD_SAMPLING.values(), ids=BAD_SAMPLING)
def test_refuses_sampling(getkey, value, match):
    with pytest.raises(ValueError, match=match):
        ragged().cohort(getkey(), 3, batch_size=2, sampling=value)


def test_refuses_weights_that_are_all_zero(getkey):
    options = {"batch_size": 2, "sampling": np.zeros(4), "replace": True}
    with pytest.raises(ValueError, match="1 clients must have a positive weight"):
        ragged().cohort(getkey(), 3, **options)


def test_who_cannot_be_reached_leaves_an_empty_place(getkey):
    available = np.array([False, True, False, True])
    got = batches(ragged(), getkey(), 4, batch_size=64, available=available)
    assert got.client.tolist() == [1, 3, -1, -1]
    assert got.mask.sum(axis=(1, 2)).tolist() == [1, 100, 0, 0]
    assert not got.examples["y"][2:].any()


def test_nobody_can_be_reached(getkey):
    for replace in (False, True):
        options = {"available": np.zeros(4), "replace": replace}
        got = batches(ragged(), getkey(), 3, batch_size=8, **options)
        assert got.client.tolist() == [-1, -1, -1]
        assert got.mask.shape == (3, 1, 8)
        assert not got.mask.any()


def test_all_reachable_is_as_without(getkey):
    data, key = ragged([3] * 20), getkey()
    plain = batches(data, key, 5, batch_size=2)
    for available in (np.ones(20), np.ones(20, bool)):
        got = batches(data, key, 5, batch_size=2, available=available)
        jax.tree.map(np.testing.assert_array_equal, plain, got)


def test_availability_is_drawn_anew_with_its_probability():
    data = ragged([1] * 40)
    chance = np.linspace(0, 1, 40)
    got = shares(data, 300, 40, available=chance)
    np.testing.assert_allclose(40 * got, chance, atol=0.12)
    assert got[0] == 0
    assert 40 * got[-1] == pytest.approx(1)


def test_availability_and_weights_together(getkey):
    options = {"available": np.array([True, True, False, True]), "sampling": "size"}
    got = batches(ragged(), getkey(), 3, batch_size=8, **options)
    assert got.client.tolist() == [1, 3, -1]


BAD_AVAILABLE = {
    "shape": (np.ones(3), r"probabilities \[4\], one per client; got float64\[3\]"),
    "whole": (np.ones(4, int), r"expected bools or probabilities \[4\].*int64\[4\]"),
    "above": ([0, 0.5, 1.5, 0], r"from 0 to 1; got 1\.5 for client 2"),
    "nan": ([0, np.nan, 1.0, 0], r"from 0 to 1; got nan for client 1"),
}


@pytest.mark.parametrize(("value", "match"), BAD_AVAILABLE.values(), ids=BAD_AVAILABLE)
def test_refuses_available(getkey, value, match):
    with pytest.raises(ValueError, match=match):
        ragged().cohort(getkey(), 2, batch_size=2, available=value)


def test_empty_clients_and_places_weigh_nothing(getkey):
    available = np.array([True, True, True, False])
    cohort = ragged().cohort(getkey(), 4, batch_size=8, available=available)
    assert cohort.unsafe_gather().client.tolist() == [0, 1, 2, -1]

    @fad.program
    def means(cohort):
        def client(batches):
            count = jnp.sum(batches.mask, dtype=jnp.float32)
            seen = jnp.where(batches.mask, batches.examples["x"][..., 0], 0.0)
            return seen.sum() / jnp.maximum(count, 1.0), count

        mean, count = fad.map(client, cohort)
        return fad.weighted_mean(mean, count), fad.mean(count)

    weighted, counts = means(cohort)
    # The rows 1 to 8 are those of the clients of 1 and 7 examples.
    assert float(weighted) == pytest.approx(4.5)
    assert float(counts) == pytest.approx(8 / 4)


def test_an_empty_place_has_a_random_stream():
    key, clients = jax.random.key(0), jnp.array([-1, 0, 1], jnp.int32)
    keys = jax.vmap(fad.local.client_key, (None, 0))(key, clients)
    words = jax.random.key_data(keys)
    assert len(np.unique(words, axis=0)) == 3
    one = fad.local.client_key(key, jnp.int32(-1))
    np.testing.assert_array_equal(jax.random.key_data(one), words[0])


def test_max_examples_takes_the_first_of_the_shuffled(getkey):
    data, key = ragged(), getkey()
    options = {"batch_size": 4, "epochs": 3}
    got = batches(data, key, 4, max_examples=6, **options)
    whole = batches(data, key, 4, **options)
    assert got.mask.shape == (4, 3 * 2, 4)
    assert got.mask.sum(axis=(1, 2)).tolist() == [0, 3, 18, 18]
    for i in range(4):
        size = data.sizes[i]
        everything = held(whole, i).reshape(3, size)
        cut = everything[:, : min(6, size)]
        assert held(got, i).tolist() == cut.reshape(-1).tolist()


def test_refuses_max_examples(getkey):
    with pytest.raises(ValueError, match=r"max_examples=\.\.\.\): expected a positive"):
        ragged().cohort(getkey(), 2, batch_size=2, max_examples=0)


NO_NUMBERS = [object, "S3", "U3", "datetime64[s]", [("a", "f4")], ">f4", "V4"]
if hasattr(np.dtypes, "StringDType"):
    NO_NUMBERS.append(np.dtypes.StringDType())


@pytest.mark.parametrize("dtype", [*NO_NUMBERS, np.longdouble, np.clongdouble], ids=str)
def test_refuses_examples_that_are_no_numbers(getkey, dtype):
    text = np.zeros(3, dtype)
    data = Federated({"text": text, "y": np.zeros(3)}, np.array([0, 3]))
    match = r"cohort\(\): batches hold numbers, but 'text' is .*next_character"
    with pytest.raises(ValueError, match=match):
        data.cohort(getkey(), 1, batch_size=2)


def test_bfloat16_examples_stay(getkey):
    x = np.arange(3).astype(jnp.bfloat16)
    got = batches(Federated({"x": x}, np.array([0, 3])), getkey(), 1, batch_size=4)
    assert got.examples["x"].dtype == jnp.bfloat16
    assert sorted(got.examples["x"].reshape(-1).tolist()) == [0, 0, 1, 2]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.complex64, jnp.int4])
def test_numbers_of_any_kind_stay(getkey, dtype):
    data = Federated({"x": np.ones(3, dtype)}, np.array([0, 3]))
    x = batches(data, getkey(), 1, batch_size=4).examples["x"]
    assert x.dtype == dtype
    assert x.astype(np.int32).sum() == 3 if dtype is not np.complex64 else x.sum() == 3


@pytest.mark.parametrize(
    "layout", [lambda x: x[:, :20], lambda x: np.asfortranarray(x[:, :20])]
)
def test_other_layouts_are_not_copied_whole(getkey, layout):
    big = np.arange(20_000 * 40, dtype=np.float32).reshape(20_000, 40)
    offsets, key = np.arange(2001) * 10, getkey()
    data = Federated({"x": layout(big)}, offsets)
    assert not data.examples["x"].flags.c_contiguous
    tracemalloc.start()
    got = batches(data, key, 4, batch_size=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * data.examples["x"].nbytes
    plain = Federated({"x": np.ascontiguousarray(big[:, :20])}, offsets)
    expected = batches(plain, key, 4, batch_size=5)
    jax.tree.map(np.testing.assert_array_equal, expected, got)


def test_a_cpu_takes_the_examples_without_a_copy(getkey):
    data = Federated({"x": np.ones((64, 3, 5), np.float32)}, np.array([0, 64]))
    x = batches(data, getkey(), 1, batch_size=8).examples["x"]
    on_device = jax.device_put(x, jax.devices("cpu")[0])
    assert on_device.unsafe_buffer_pointer() == x.ctypes.data
