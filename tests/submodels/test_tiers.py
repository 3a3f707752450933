"""A cohort cut into tiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import AtClients, FadError
from fad.submodels import tiers


@pytest.mark.parametrize("xp", [np, jnp])
def test_tiers_are_equal_runs_of_the_places(xp):
    cohort = AtClients({"x": xp.arange(12).reshape(6, 2), "n": xp.arange(6)})
    parts = tiers(cohort, 3)
    assert [type(part) for part in parts] == [AtClients] * 3
    assert [part["n"].unsafe_gather().tolist() for part in parts] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert parts[1]["x"].unsafe_gather().tolist() == [[4, 5], [6, 7]]


def test_one_tier_is_the_cohort_also_under_jit():
    whole = jax.jit(lambda cohort: tiers(cohort, 1))(AtClients(jnp.arange(4)))
    assert whole[0].unsafe_gather().tolist() == [0, 1, 2, 3]


def test_bad_tiers_are_refused():
    cohort = AtClients(jnp.arange(6))
    with pytest.raises(FadError, match=r"count=4\): the cohort has 6 .*multiple of 4"):
        tiers(cohort, 4)
    for count in (0, 2.0, True):
        with pytest.raises(FadError, match=r"tiers\(count=.*positive int; got"):
            tiers(cohort, count)  # type: ignore
    with pytest.raises(FadError, match=r"tiers\(cohort=.*AtClients; got int32\[6\]"):
        tiers(jnp.arange(6), 2)  # type: ignore
