"""The means of tiers as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import AtClients, FadError
from fad.submodels import merged, tiers


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_the_mean_over_the_clients_of_all_tiers(dtype):
    rng = np.random.default_rng(0)
    y = AtClients(jnp.asarray(rng.normal(size=(6, 2)), dtype))
    keys = AtClients(jnp.array([[0, 1], [1, 2], [0, -1], [0, 1], [-1, 4], [4, 1]]))
    weights = AtClients(jnp.array([1.0, 2.0, 0.0, 3.0, 1.0, 0.5]))
    x = jnp.arange(5, dtype=dtype)

    @fad.program
    def mean(y, keys, weights):
        return fad.coverage_mean(y, keys, x, weights=weights)

    parts = [tiers(part, 3) for part in (y, keys, weights)]
    found = merged([mean(*tier) for tier in zip(*parts, strict=True)])
    want = mean(y, keys, weights)
    np.testing.assert_allclose(found.weight, want.weight)
    assert found.mean.dtype == dtype
    close = 1e-6 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(
        found.mean.astype(float), want.mean.astype(float), rtol=close
    )
    assert found.mean[3] == x[3]


def test_what_a_tier_does_not_cover_counts_for_nothing():
    one = fad.Coverage(jnp.array([jnp.nan, 2.0]), jnp.array([0.0, 1.0]))
    other = fad.Coverage(jnp.array([4.0, 8.0]), jnp.array([2.0, 2.0]))
    assert merged([one, other]).mean.tolist() == [4.0, 6.0]
    slope = jax.grad(lambda m: merged([one, other._replace(mean=m)]).mean.sum())
    np.testing.assert_allclose(slope(other.mean), [1.0, 2 / 3], rtol=1e-6)


def test_coverages_of_one_structure_are_needed():
    one = fad.Coverage(jnp.ones(2), jnp.ones(2))
    other = fad.Coverage([jnp.ones(2)], [jnp.ones(2)])
    with pytest.raises(FadError, match=r"merged\(coverages\).*one structure.*and Py"):
        merged([one, other])
    with pytest.raises(FadError, match=r"one for each tier; got none"):
        merged([])
