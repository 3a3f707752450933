import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_eight_devices():
    assert jax.device_count() == 8


def test_single_precision_is_the_default():
    assert jnp.ones(()).dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_x64_gives_double_precision():
    assert jnp.ones(()).dtype == jnp.float64


def test_getkey_gives_new_keys_and_the_same_again(getkey):
    first, second = (jax.random.normal(getkey(), (3,)) for _ in range(2))
    assert not np.array_equal(first, second)
    again = type(getkey)(getkey.seed)
    np.testing.assert_array_equal(jax.random.normal(again(), (3,)), first)


def test_getkey_prints_its_seed(getkey):
    assert repr(getkey) == f"GetKey(FAD_TEST_SEED={getkey.seed})"


def test_ranks_are_not_promoted_silently():
    with pytest.raises(ValueError, match="rank_promotion"):
        _ = jnp.ones((2, 3)) + jnp.ones(3)
