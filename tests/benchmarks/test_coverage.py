"""The study of the minimum coverage: its keys, its gradient and its slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _coverage_page as page
from benchmarks import coverage

pytestmark = pytest.mark.once


@pytest.mark.parametrize("count", coverage.COUNTS)
@pytest.mark.parametrize("rounds", [0, 3, 8])
def test_every_coordinate_is_held_by_so_many_clients(count, rounds):
    cohort = coverage.cohort(coverage.draw(jax.random.key(0)), jax.random.key(1))
    of = coverage.keys_of(count, 8)(None, jnp.int32(rounds), None)
    x, y = jax.vmap(of)(cohort.unsafe_gather())
    assert np.bincount(np.ravel(x), minlength=16).tolist() == [count] * 16
    assert np.bincount(np.ravel(y), minlength=16).tolist() == [8] * 16


def test_the_gradient_is_that_of_the_bilevel_objective(x64):
    problem = coverage.draw(jax.random.key(2))
    losses = coverage.losses()
    zero = jnp.zeros((1, coverage.SIZE))
    upper = {"near": problem.near[None], "noise": zero, "slope": zero}

    def objective(x):
        y = coverage.COUPLING * jnp.tanh(x) + problem.shifts.mean(0)
        return losses.upper(x, y, upper)[0]

    x = jnp.linspace(-2.0, 2.0, coverage.SIZE)
    np.testing.assert_allclose(
        coverage.gradient(problem, x), jax.grad(objective)(x), atol=1e-12
    )


def test_the_best_step_is_that_with_the_least_mean():
    pairs = [(1, 1), (2, 2), (4, 4)]
    rows = [
        {
            "coverage": list(pair),
            "reached": [[900, 800 / pair[0]], [900, 400 / pair[0]]],
        }
        for pair in pairs
    ]
    found = {"steps": [0.1, 0.05], "rows": rows}
    best = page.best(found, (2, 2))
    assert best.step == 0.05
    assert best.rounds.tolist() == [400, 200]
    np.testing.assert_allclose(page.slopes(found, pairs), [-1, -1])
