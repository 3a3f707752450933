"""Which units a rule takes, index for index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import FadError
from fad.submodels import kept, random, rolling, static, top

# FedRolex's window of 3 of 5 units, round by round.
WINDOWS = {
    0: [0, 1, 2],
    1: [1, 2, 3],
    2: [2, 3, 4],
    3: [3, 4, 0],
    4: [4, 0, 1],
    5: [0, 1, 2],
    11: [1, 2, 3],
}


def test_kept_rounds_up_and_forgives_the_products_error():
    sizes = [(10, 0.1), (10, 0.3), (100, 0.07), (100, 0.29), (64, 0.0625)]
    assert [kept(*pair) for pair in sizes] == [1, 3, 7, 29, 4]
    assert [kept(5, width) for width in (1, 1.0, 0.5, 0.25, 1e-9)] == [5, 5, 3, 2, 1]
    assert kept(10, float(np.float32(0.1))) == 1
    assert kept(3, 1 / 3) == 1
    assert kept(1, 0.125) == 1


@pytest.mark.parametrize("width", [0, -0.5, 1.01, float("nan"), True, "half", None])
def test_budgets_of_zero_or_above_one_are_refused(width):
    with pytest.raises(FadError, match=r"kept\(width=.*\(0, 1\].*got"):
        kept(8, width)


def test_static_takes_the_first_units():
    assert static(5, 3).tolist() == [0, 1, 2]
    assert static(5, 5).dtype == jnp.int32


def test_rolling_is_the_papers_window_index_for_index():
    window = jax.jit(rolling, static_argnums=(0, 1))
    for round_, units in WINDOWS.items():
        assert window(5, 3, round_).tolist() == units
        assert window(5, 3, round_).dtype == jnp.int32
    assert rolling(5, 3, np.uint32(2**32 - 1)).tolist() == [0, 1, 2]


def test_rolling_at_minus_the_round_is_the_authors_code():
    """``torch.roll`` is ``numpy.roll``: positive shifts go to larger places."""
    for round_ in range(12):
        code = np.roll(np.arange(5), round_ % 5)[:3]
        assert rolling(5, 3, -round_).tolist() == code.tolist()


def test_rolling_covers_every_unit_equally(x64):
    del x64
    windows = [rolling(7, 3, jnp.int64(r)) for r in range(7)]
    assert np.bincount(np.concatenate(windows)).tolist() == [3] * 7
    assert windows[0].dtype == jnp.int32


def test_random_units_are_distinct_and_equally_likely(getkey, x64):
    del x64
    keys = jax.random.split(getkey(), 3000)
    units = jax.jit(jax.vmap(lambda key: random(5, 2, key)))(keys)
    assert units.dtype == jnp.int32
    assert bool(jnp.all(units[:, 0] < units[:, 1]))
    # Six standard deviations of a share of 2 / 5.
    shares = np.bincount(np.ravel(units), minlength=5) / 3000
    np.testing.assert_allclose(shares, 0.4, atol=6 * (0.24 / 3000) ** 0.5)
    assert random(5, 5, getkey()).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_top_takes_the_largest_with_ties_to_the_lower_and_nan_last(dtype):
    inf, nan = float("inf"), float("nan")
    largest = jax.jit(top, static_argnums=1)
    scores = jnp.array([nan, 1.0, 2.0, 1.0, -inf, 1.0], dtype)
    assert largest(scores, 1).tolist() == [2]
    assert largest(scores, 3).tolist() == [1, 2, 3]
    assert largest(scores, 4).tolist() == [1, 2, 3, 5]
    assert largest(scores, 5).tolist() == [1, 2, 3, 4, 5]
    assert largest(scores, 6).dtype == jnp.int32
    assert largest(-scores, 1).tolist() == [4]


@pytest.mark.parametrize("keep", [0, 6, -1, 2.0, True])
def test_the_number_of_units_is_checked(keep):
    for call, fn in {
        "static": lambda: static(5, keep),
        "rolling": lambda: rolling(5, keep, 0),
        "random": lambda: random(5, keep, jax.random.key(0)),
        "top": lambda: top(jnp.ones(5), keep),
    }.items():
        with pytest.raises(
            FadError, match=rf"{call}\(keep=.*from 1 to .* 5 units; got"
        ):
            fn()


def test_other_arguments_are_checked():
    with pytest.raises(FadError, match=r"static\(size=.*positive int; got int 0"):
        static(0, 1)
    with pytest.raises(FadError, match=r"rolling\(round=.*one integer; got float 1.5"):
        rolling(5, 3, 1.5)
    with pytest.raises(FadError, match=r"rolling\(round=.*got int32\[2\]"):
        rolling(5, 3, jnp.arange(2))
    with pytest.raises(FadError, match=r"top\(scores=.*got int32\[3\]"):
        top(jnp.arange(3), 1)
    with pytest.raises(FadError, match=r"top\(scores=.*got float32\[2,2\]"):
        top(jnp.ones((2, 2)), 1)
