"""Values that no task can learn from are refused, with their column and client."""

import jax.numpy as jnp
import numpy as np
import pytest

from fad.data import Federated, Task, _check_values

OFFSETS = np.array([0, 2, 2, 5])


def make(x, *, names=None, test=None):
    return Task(
        name="gaps",
        train=Federated({"x": x}, OFFSETS, names=names),
        test={"x": np.ones((1, *x.shape[1:]), x.dtype)} if test is None else test,
        init=lambda key: jnp.zeros(()),
        loss=lambda params, examples: examples["x"].sum(1),
        metrics=lambda params, examples: {},
    )


def gaps(*where, shape=(5, 3)):
    x = np.ones(shape, np.float32)
    for place in where:
        x[place] = np.nan
    return x


def test_names_column_and_client():
    match = (
        r"Task\(train=\.\.\.\): expected finite numbers, but 'x' has NaN or infinity "
        r"in 3 of 5 rows, in the columns 1, 2, at the clients 0 \(1 of them\), "
        r"2 \(2 of them\)\. Fill them in"
    )
    with pytest.raises(ValueError, match=match):
        make(gaps((0, 1), (3, 2), (4, 2)))


def test_uses_the_clients_names():
    with pytest.raises(ValueError, match=r"clients va \(1 of them\)\."):
        make(gaps((4, 0)), names=("cleveland", "basel", "va"))


def test_names_the_first_few_of_many():
    x = gaps(*((4, i) for i in range(8)), shape=(5, 9))
    with pytest.raises(
        ValueError, match="in 1 of 5 rows, in the columns 0, 1, 2, 3, 4 and 3 more, at"
    ):
        make(x)


def test_pixels_by_their_place():
    with pytest.raises(
        ValueError, match=r"in 1 of 5 rows, in the columns \(1, 0\), at"
    ):
        make(gaps((2, 1, 0), shape=(5, 2, 2)))


def test_one_number_an_example():
    with pytest.raises(ValueError, match=r"'x' has NaN or infinity in 1 of 5 rows, at"):
        make(gaps(2, shape=(5,)))


def test_infinity_and_the_test_set():
    test = {"x": np.full((1, 3), np.inf, np.float32)}
    match = r"Task\(test=\.\.\.\).* in 1 of 1 rows, in the columns 0, 1, 2\. Fill"
    with pytest.raises(ValueError, match=match):
        make(gaps(), test=test)


def test_looks_at_every_block(monkeypatch):
    monkeypatch.setattr(_check_values, "_BLOCK", 2)
    with pytest.raises(ValueError, match="in 2 of 5 rows, in the columns 0, 2, at"):
        make(gaps((1, 0), (4, 2)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn, np.complex64])
def test_real_numbers_of_every_kind(dtype):
    make(np.ones((5, 3), dtype))
    with pytest.raises(ValueError, match="'x' has NaN or infinity in 1 of 5 rows"):
        make(gaps((1, 0)).astype(dtype))


WRAPPED = {
    "above": (2**31, np.int64, r"-2147483648\.\.2147483647"),
    "below": (-(2**31) - 1, np.int64, r"-2147483648\.\.2147483647"),
    "unsigned": (2**32, np.uint64, r"0\.\.4294967295"),
}


@pytest.mark.parametrize(("value", "dtype", "held"), WRAPPED.values(), ids=WRAPPED)
def test_integers_that_the_device_would_wrap(value, dtype, held):
    x = np.zeros((5, 3), dtype)
    x[3, 1] = value
    match = (
        r"Task\(train=\.\.\.\): expected integers of 32 bits, as JAX keeps no others "
        rf"without jax_enable_x64, but 'x' has some outside {held} in 1 of 5 rows, in "
        r"the columns 1, at the clients 2 \(1 of them\)\. Number them from 0"
    )
    with pytest.raises(ValueError, match=match):
        make(x)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_accepts_integers_that_fit(dtype):
    bounds = np.iinfo(f"{np.dtype(dtype).kind}4")
    x = np.zeros((5, 3), dtype)
    x[0, :2] = bounds.min, bounds.max
    make(x)


@pytest.mark.usefixtures("x64")
def test_accepts_wide_integers_with_x64():
    make(np.full((5, 3), 2**40))


def test_accepts_whole_numbers_and_complete_rows():
    make(gaps())
    make(np.ones((5, 3), np.uint8))
