import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.data import compositional, quadratic_problem

pytestmark = pytest.mark.usefixtures("x64")


def objective(data, x, penalty=0.1):
    """``mean_i |mean_j r_j(x) - d_i|^2 / 2``, less what does not depend on x."""
    B, c, d = -data.clients.C, -data.clients.a, -data.clients.f
    r = (B @ x + c).mean(0)
    return ((r[None] - d) ** 2).sum(1).mean() / 2 + penalty * x @ x / 2


def test_is_the_composition():
    data = compositional(6, inner_size=4, upper_size=3, seed=1)
    x = jnp.array([0.3, -1.0, 2.0])
    expected = jax.grad(lambda x: objective(data, x))(x)
    np.testing.assert_allclose(data.hypergradient(x), expected, rtol=1e-12)
    B = -data.mean.C
    np.testing.assert_allclose(data.solution(x), B @ x - data.mean.a, rtol=1e-12)


def test_its_optimum():
    data = compositional(6, inner_size=4, upper_size=3, seed=1)
    B, c, d = -data.mean.C, -data.mean.a, -data.mean.f
    expected = np.linalg.solve(B.T @ B + 0.1 * np.eye(3), B.T @ (d - c))
    np.testing.assert_allclose(data.optimum(), expected, rtol=1e-12)
    assert np.abs(expected).max() > 0.1


def test_as_a_bilevel_problem():
    data = compositional(6, inner_size=4, upper_size=3, seed=1)
    problem, cohorts = quadratic_problem(data)
    x, y = np.array([0.3, -1.0, 2.0]), np.zeros(4)
    estimator = fad.estimators.aid(
        problem, fad.solvers.gradient_descent(1.0), steps=1, terms=2
    )
    state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
    found = estimator.estimate(x, state, cohorts, None)
    expected = data.hypergradient(x)
    np.testing.assert_allclose(found.hypergradient, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clients": 0}, r"compositional\(clients=\.\.\.\): expected a positive"),
        ({"inner_size": 0}, r"compositional\(inner_size=\.\.\.\): expected a positive"),
        ({"upper_size": 0}, r"compositional\(upper_size=\.\.\.\): expected a positive"),
        ({"penalty": -1}, r"compositional\(penalty=\.\.\.\): expected a finite number"),
        ({"seed": -1}, r"compositional\(seed=\.\.\.\): expected an integer of at lea"),
    ],
)
def test_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        compositional(**{"clients": 2, "seed": 0, **options})
