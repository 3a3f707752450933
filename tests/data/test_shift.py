"""Clients that see rotated or noisy features."""

from typing import Any

import numpy as np
import pytest

from fad.data import Federated, add_noise, rotate

pytestmark = pytest.mark.once

OFFSETS = np.array([0, 2, 2, 5])


def images(shape: tuple[int, ...] = (5, 6, 6), dtype: Any = np.uint8):
    x = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    return Federated({"x": x, "y": np.arange(5)}, OFFSETS, names=("a", "b", "c"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 6, 6, 3)])
def test_quarter_turns_are_exact(shape, dtype):
    data = images(shape, dtype)
    turned = rotate(data, degrees=[90, 0, 180])
    x, before = turned.examples["x"], data.examples["x"]
    assert x.dtype == before.dtype
    np.testing.assert_array_equal(x[:2], np.rot90(before[:2], 1, axes=(1, 2)))
    np.testing.assert_array_equal(x[2:], np.rot90(before[2:], 2, axes=(1, 2)))


def test_the_rest_of_the_clients_stays():
    data = images()
    for changed in (
        rotate(data, max_degrees=30, seed=1),
        add_noise(data, scale=3.0, seed=1),
    ):
        assert changed.names == data.names
        assert changed.examples["y"] is data.examples["y"]
        np.testing.assert_array_equal(changed.offsets, OFFSETS)
    np.testing.assert_array_equal(data.examples["x"], images().examples["x"])


def test_a_disc_stays_and_corners_leave():
    place = np.hypot(*(np.indices((21, 21)) - 10))
    x = np.where(place < 6, 200, 0).astype(np.uint8)[None]
    disc = Federated({"x": x}, np.array([0, 1]))
    turned = rotate(disc, degrees=[37.0]).examples["x"]
    assert abs(turned.astype(int) - x)[0][abs(place - 6) > 1.5].max() == 0
    full = Federated({"x": np.full((1, 21, 21), 200, np.uint8)}, np.array([0, 1]))
    corners = rotate(full, degrees=[45]).examples["x"]
    assert corners[0, 0, 0] == 0
    assert corners[0, 10, 10] == 200


def test_angles_are_drawn_within_the_bound_and_by_the_seed():
    data = images((5, 20, 20), np.float64)
    first, again, other = (
        rotate(data, max_degrees=40, seed=seed).examples["x"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    angles = np.random.default_rng(0).uniform(-40, 40, 3)
    given = rotate(data, degrees=list(angles)).examples["x"]
    np.testing.assert_array_equal(first, given)
    still = rotate(data, max_degrees=0).examples["x"]
    np.testing.assert_array_equal(still, data.examples["x"])


def test_noise_grows_with_the_client():
    offsets = np.arange(0, 40_001, 10_000)
    data = Federated({"x": np.zeros((40_000, 2), np.float32)}, offsets)
    noisy = add_noise(data, scale=2.0, seed=0)
    assert noisy.examples["x"].dtype == np.float32
    deviations = [noisy.client(i)["x"].std() for i in range(4)]
    np.testing.assert_allclose(deviations, [0.5, 1.0, 1.5, 2.0], rtol=0.03)
    np.testing.assert_allclose(noisy.examples["x"].mean(), 0, atol=0.03)


def test_noise_of_a_client_is_its_own():
    x = np.zeros(6)
    one = add_noise(Federated({"x": x}, np.array([0, 2, 6])), scale=1.0, seed=5)
    two = add_noise(Federated({"x": x}, np.array([0, 3, 6])), scale=1.0, seed=5)
    np.testing.assert_array_equal(one.client(0)["x"], two.client(0)["x"][:2])
    np.testing.assert_array_equal(one.client(1)["x"][:3], two.client(1)["x"])
    assert not np.array_equal(one.client(0)["x"] * 2, one.client(1)["x"][:2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint64])
def test_noise_rounds_and_clips_integers(dtype):
    bounds = np.iinfo(dtype)
    x = np.array([bounds.min, bounds.max] * 50, dtype)
    data = Federated({"x": x}, np.array([0, 100]))
    noisy = add_noise(data, scale=20.0, seed=0).examples["x"]
    assert noisy.dtype == dtype
    # A value that wrapped around would be at the other end.
    middle = bounds.min // 2 + bounds.max // 2
    assert (noisy[::2] < middle).all()
    assert (noisy[1::2] > middle).all()


def test_no_noise_changes_nothing():
    data = images()
    still = add_noise(data, scale=0.0, seed=0)
    np.testing.assert_array_equal(still.examples["x"], data.examples["x"])


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 6, 3, 1)])
def test_refuses_what_is_no_image(shape):
    match = r"rotate\(column='x'\): expected images \[N, height, width\] or .* uint8\[5"
    with pytest.raises(ValueError, match=match):
        rotate(images(shape), max_degrees=10)


def test_refuses_half_precision_images():
    with pytest.raises(ValueError, match=r"float32 or float64; got float16\[5,6,6\]"):
        rotate(images(dtype=np.float16), max_degrees=10)


@pytest.mark.parametrize(
    ("column", "given"), [("z", "no such name"), ("t", r"<U1\[5\]")]
)
def test_refuses_a_column(column, given):
    data = Federated({"x": np.zeros(5), "t": np.array(list("abcde"))}, OFFSETS)
    match = (
        rf"column='{column}'\): expected the name of an array of integers or .* got "
        rf"{given}. There are 'x', 't'"
    )
    with pytest.raises(ValueError, match="rotate.*" + match):
        rotate(data, max_degrees=10, column=column)
    with pytest.raises(ValueError, match="add_noise.*" + match):
        add_noise(data, scale=1.0, column=column, seed=0)


def test_refuses_none_or_both_kinds_of_angles():
    with pytest.raises(ValueError, match=r"expected one of max_degrees .* got neither"):
        rotate(images())
    with pytest.raises(ValueError, match=r"expected one of max_degrees .* got both"):
        rotate(images(), max_degrees=1, degrees=[1, 2, 3])


@pytest.mark.parametrize("degrees", [[1, 2], [1, 2, np.nan], 5, ["a", "b", "c"]])
def test_refuses_angles(degrees):
    match = r"degrees=\.\.\.\): expected one finite angle per client, \[3\]; got"
    with pytest.raises(ValueError, match=match):
        rotate(images(), degrees=degrees)


@pytest.mark.parametrize("value", [-1.0, np.nan, "much"])
def test_refuses_scales(value):
    match = r"scale=\.\.\.\): expected a finite number of at least 0; got"
    with pytest.raises(ValueError, match=match):
        add_noise(images(), scale=value, seed=0)
    match = r"max_degrees=\.\.\.\): expected a finite number of at least 0; got"
    with pytest.raises(ValueError, match=match):
        rotate(images(), max_degrees=value)
