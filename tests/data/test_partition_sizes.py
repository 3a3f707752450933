"""Unequal sizes: given ones, a power law, log-normal ones."""

import numpy as np
import pytest

from fad.data import (
    partition_lognormal,
    partition_power_law,
    partition_sizes,
)


def sizes_of(parts):
    return np.array([len(part) for part in parts])


def test_power_law_falls_with_the_rank():
    parts = partition_power_law(100_000, 20, exponent=1.5, seed=0)
    expected = np.arange(1, 21) ** -1.5
    expected *= 100_000 / expected.sum()
    sizes = np.sort(sizes_of(parts))[::-1]
    np.testing.assert_allclose(sizes, expected, rtol=0, atol=1)


def test_ranks_go_to_the_clients_at_random():
    largest = {
        int(sizes_of(partition_power_law(100, 5, exponent=2.0, seed=seed)).argmax())
        for seed in range(30)
    }
    assert largest == set(range(5))


def test_lognormal_has_the_deviation():
    parts = partition_lognormal(500_000, 1000, sigma=0.7, seed=0)
    logarithms = np.log(sizes_of(parts))
    assert abs(logarithms.std() - 0.7) < 0.05
    # No skew left in the logarithm.
    assert abs(np.mean(logarithms) - np.median(logarithms)) < 0.05


@pytest.mark.parametrize("law", [partition_power_law, partition_lognormal])
def test_zero_makes_equal_sizes(law):
    option = "exponent" if law is partition_power_law else "sigma"
    assert set(sizes_of(law(17, 5, **{option: 0}, seed=0))) == {3, 4}


def test_the_minimum_is_met_and_the_rest_in_proportion():
    parts = partition_power_law(1000, 10, exponent=2.0, minimum=40, seed=0)
    sizes = np.sort(sizes_of(parts))[::-1]
    # 720 beyond the seven smallest, as 36 : 9 : 4.
    assert sizes.tolist() == [529, 132, 59, *[40] * 7]


def test_no_minimum_allows_empty_clients():
    parts = partition_power_law(10, 8, exponent=6.0, minimum=0, seed=0)
    assert np.sort(sizes_of(parts)).tolist() == [0] * 7 + [10]


def test_refuses_one_size_for_all():
    match = r"partition_sizes\(sizes=\.\.\.\): expected one size per client; got 6"
    with pytest.raises(ValueError, match=match):
        partition_sizes(6, 6, seed=0)  # pyright: ignore[reportArgumentType]


def test_refuses_sizes_that_do_not_add_up():
    match = r"sizes=\.\.\.\): expected one size per client, 10 in all \(n=10\); got 2 "
    with pytest.raises(ValueError, match=match + "sizes, 9 in all"):
        partition_sizes(10, [4, 5], seed=0)
    with pytest.raises(ValueError, match="got 0 sizes, 0 in all"):
        partition_sizes(10, [], seed=0)


@pytest.mark.parametrize("size", [-1, 2.0])
def test_refuses_a_size(size):
    match = r"sizes\[1\]=\.\.\.\): expected an integer of at least 0; got"
    with pytest.raises(ValueError, match=match):
        partition_sizes(10, [10, size], seed=0)


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf, "1"])
def test_refuses_laws(value):
    match = r"exponent=\.\.\.\): expected a finite number of at least 0; got"
    with pytest.raises(ValueError, match=match):
        partition_power_law(10, 2, exponent=value, seed=0)
    match = r"sigma=\.\.\.\): expected a finite number of at least 0; got"
    with pytest.raises(ValueError, match=match):
        partition_lognormal(10, 2, sigma=value, seed=0)


@pytest.mark.parametrize("law", [partition_power_law, partition_lognormal])
def test_refuses_more_than_there_is(law):
    options = {"exponent" if law is partition_power_law else "sigma": 1.0, "seed": 0}
    match = (
        r"\(minimum=3\): 4 clients with at least 3 examples each need 12, but there "
        "are only 10. Ask for at most 2"
    )
    with pytest.raises(ValueError, match=match):
        law(10, 4, minimum=3, **options)
    with pytest.raises(ValueError, match=r"\(n=\.\.\.\): expected a positive"):
        law(0, 4, **options)
    with pytest.raises(ValueError, match=r"\(clients=\.\.\.\): expected a positive"):
        law(10, 0, **options)
