import jax
import numpy as np
import pytest

import fad
from fad.data import minimax, quadratic_problem

pytestmark = pytest.mark.usefixtures("x64")


def saddle(i, data, x, y, penalty=0.1):
    """f_i as the docstring has it, from the arrays of client i."""
    t, b = data.clients.C[i, 0, 0], -data.clients.a[i]
    return penalty * x @ x / 2 - y @ y / 2 + b @ y - t * y @ x


def test_is_the_saddle_point_problem():
    data = minimax(7, size=3, seed=1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3))
    for i in range(7):
        client = jax.tree.map(lambda a, i=i: a[i], data.clients)
        f = saddle(i, data, x, y)
        np.testing.assert_allclose(client.upper(x, y), f, atol=1e-14)
        rest = -0.1 * x @ x / 2
        np.testing.assert_allclose(client.lower(x, y) + rest, -f, atol=1e-14)


def test_its_law():
    data = minimax(4000, size=2, coupling=0.3, noise=2.0, seed=0)
    t, b = data.clients.C[:, 0, 0], -data.clients.a
    assert 0 <= t.min()
    assert t.max() <= 0.3
    np.testing.assert_allclose(t.mean(), 0.15, rtol=0.05)
    np.testing.assert_allclose(b.mean(0), 0, atol=1e-14)
    # The mean square of a uniform number in [0, 4] is 16 / 3.
    np.testing.assert_allclose(b.var(), 16 / 3, rtol=0.1)


def test_the_saddle_is_at_zero():
    data = minimax(50, seed=0)
    np.testing.assert_allclose(data.optimum(), np.zeros(10), atol=1e-14)
    np.testing.assert_allclose(data.solution(np.zeros(10)), np.zeros(10), atol=1e-14)
    x, t = np.arange(10.0), data.mean.C[0, 0]
    np.testing.assert_allclose(
        data.hypergradient(x), (0.1 + t**2) * x, rtol=1e-12, atol=1e-14
    )


def test_without_a_shift_of_y_the_hypergradient_is_that_of_x_alone():
    """At a maximum in y the chain through y adds nothing (Danskin)."""
    problem, cohorts = quadratic_problem(minimax(5, size=2, seed=3))
    x = np.array([1.0, -2.0])
    y = minimax(5, size=2, seed=3).solution(x)
    estimator = fad.estimators.aid(
        problem, fad.solvers.gradient_descent(1.0), steps=1, terms=2
    )
    found = estimator.estimate(
        x, estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts)), cohorts, None
    )
    expected = minimax(5, size=2, seed=3).hypergradient(x)
    np.testing.assert_allclose(found.hypergradient, expected, rtol=1e-12)


def test_one_client():
    data = minimax(1, size=2, seed=0)
    np.testing.assert_allclose(data.clients.a, 0)
    np.testing.assert_allclose(data.optimum(), 0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clients": 0}, r"minimax\(clients=\.\.\.\): expected a positive integer"),
        ({"size": 0}, r"minimax\(size=\.\.\.\): expected a positive integer"),
        ({"coupling": -1}, r"minimax\(coupling=\.\.\.\): expected a finite number"),
        ({"noise": -1.0}, r"minimax\(noise=\.\.\.\): expected a finite number of at"),
        ({"penalty": np.nan}, r"minimax\(penalty=\.\.\.\): expected a finite number"),
        ({"seed": None}, r"minimax\(seed=\.\.\.\): expected an integer of at least 0"),
    ],
)
def test_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        minimax(**{"clients": 2, "seed": 0, **options})
