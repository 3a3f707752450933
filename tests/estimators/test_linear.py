"""Linear systems by products: the solution, the report, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.estimators._linear import conjugate_gradient, neumann

pytestmark = pytest.mark.usefixtures("x64")

RANDOM = np.random.default_rng(0)
SIZE, LEAST, GREATEST = 5, 0.5, 1.0


def matrix(eigenvalues):
    q, _ = np.linalg.qr(RANDOM.normal(size=(SIZE, SIZE)))
    return q @ np.diag(eigenvalues) @ q.T


DEFINITE = matrix(np.linspace(LEAST, GREATEST, SIZE))
RIGHT = RANDOM.normal(size=SIZE)
KINDS = {
    "cg": conjugate_gradient,
    "neumann": functools.partial(neumann, step=1.0 / GREATEST),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tree(vector, dtype=jnp.float64):
    return {"a": jnp.asarray(vector[:3], dtype), "b": jnp.asarray(vector[3:], dtype)}


def vector(tree):
    return np.concatenate([np.asarray(v, np.float64) for v in tree.values()])


def product(a, dtype=jnp.float64):
    def matvec(v):
        joined = jnp.concatenate([v["a"], v["b"]])
        return tree(jnp.asarray(a, dtype) @ joined, dtype)

    return matvec


@every_kind
@pytest.mark.parametrize("start", [None, "near", "solution"])
def test_the_solution(kind, start):
    want = np.linalg.solve(DEFINITE, RIGHT)
    x0 = {None: None, "near": tree(want + 1e-3), "solution": tree(want)}[start]
    terms = SIZE if kind == "cg" else 50
    found = KINDS[kind](product(DEFINITE), tree(RIGHT), terms=terms, x0=x0)
    np.testing.assert_allclose(vector(found.value), want, rtol=1e-10)
    assert found.residual < 1e-10
    assert not found.indefinite


@every_kind
@pytest.mark.parametrize("terms", [1, 3])
def test_the_residual_is_relative_to_the_right_hand_side(kind, terms):
    found = KINDS[kind](product(DEFINITE), tree(RIGHT), terms=terms)
    value = found.value
    if kind == "neumann":  # that of the sum without its last addend
        value = KINDS[kind](product(DEFINITE), tree(RIGHT), terms=terms - 1).value
    left = RIGHT - DEFINITE @ vector(value)
    want = np.linalg.norm(left) / np.linalg.norm(RIGHT)
    np.testing.assert_allclose(found.residual, want, rtol=1e-10)


@pytest.mark.parametrize("x0", [None, RIGHT])
def test_the_sum_of_a_neumann_series(x0):
    """Of an asymmetric matrix, from any start."""
    a = np.eye(SIZE) + np.triu(np.full((SIZE, SIZE), 0.2), 1)
    step, start = 0.7, np.zeros(SIZE) if x0 is None else x0
    first = RIGHT - a @ start
    powers = [np.linalg.matrix_power(np.eye(SIZE) - step * a, k) for k in range(4)]
    want = start + step * sum(powers) @ first
    x0 = None if x0 is None else tree(x0)
    found = neumann(product(a), tree(RIGHT), terms=3, step=step, x0=x0)
    np.testing.assert_allclose(vector(found.value), want, rtol=1e-12)


def test_a_neumann_series_that_diverges_says_so():
    found = neumann(product(DEFINITE), tree(RIGHT), terms=30, step=3.0)
    assert found.residual > 1


@every_kind
@pytest.mark.parametrize("x0", [None, np.zeros(SIZE)])
def test_a_right_hand_side_of_zero(kind, x0):
    x0 = None if x0 is None else tree(x0)
    found = KINDS[kind](product(DEFINITE), tree(np.zeros(SIZE)), terms=3, x0=x0)
    assert not vector(found.value).any()
    assert found.residual == 0
    assert not found.indefinite


def test_conjugate_gradients_stop_at_the_solution():
    """Terms beyond the size neither divide by zero nor take rounding for curvature."""
    want = np.linalg.solve(DEFINITE, RIGHT)
    found = conjugate_gradient(product(DEFINITE), tree(RIGHT), terms=60)
    np.testing.assert_allclose(vector(found.value), want, rtol=1e-12)
    assert found.residual < 1e-15
    assert not found.indefinite


@every_kind
def test_indefinite_matrices_are_reported(kind):
    a = matrix([-1.0, 0.5, 0.7, 0.9, 1.0])
    worst = np.linalg.eigh(a)[1][:, 0]
    found = KINDS[kind](product(a), tree(worst + 1e-2 * RIGHT), terms=2)
    assert found.indefinite


def test_a_negative_definite_matrix_is_solved_and_reported():
    found = conjugate_gradient(product(-DEFINITE), tree(RIGHT), terms=SIZE)
    want = -np.linalg.solve(DEFINITE, RIGHT)
    np.testing.assert_allclose(vector(found.value), want, rtol=1e-10)
    assert found.indefinite


@every_kind
def test_a_matrix_of_zeros_gives_finite_numbers(kind):
    found = KINDS[kind](product(np.zeros((SIZE, SIZE))), tree(RIGHT), terms=4)
    assert np.isfinite(vector(found.value)).all()
    assert found.residual == 1
    assert found.indefinite


@every_kind
def test_nan_is_not_hidden(kind):
    b = RIGHT.copy()
    b[4] = np.nan
    found = KINDS[kind](product(DEFINITE), tree(b), terms=2)
    assert np.isnan(vector(found.value)).any()
    assert jnp.isnan(found.residual)


@every_kind
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept(kind, dtype):
    b, terms = tree(RIGHT, dtype), SIZE if kind == "cg" else 20
    found = KINDS[kind](product(DEFINITE, dtype), b, terms=terms)
    assert {v.dtype for v in found.value.values()} == {jnp.dtype(dtype)}
    want = np.linalg.solve(DEFINITE, RIGHT)
    tol = 30 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(vector(found.value), want, atol=tol, rtol=tol)


@every_kind
def test_the_derivative_through_the_terms(kind):
    def solve(b):
        b = {"a": b[:3], "b": b[3:]}
        return KINDS[kind](product(DEFINITE), b, terms=60).value["a"]

    found = jax.jit(jax.jacrev(solve))(jnp.asarray(RIGHT))
    np.testing.assert_allclose(found, np.linalg.inv(DEFINITE)[:3], atol=1e-6)


@every_kind
@pytest.mark.parametrize("terms", [1, 3])
def test_a_product_is_a_round_and_a_start_one_more(kind, terms):
    @fad.program
    def solve(b, x0, data):
        matvec = lambda v: fad.mean(fad.map(lambda x: x * (x @ v) + v, data))  # noqa: E731
        return KINDS[kind](matvec, b, terms=terms, x0=x0)

    b, data = jnp.ones(3), fad.AtClients(jnp.ones((4, 3)))
    assert fad.plan(solve)(b, None, data).cost().rounds == terms
    assert fad.plan(solve)(b, b, data).cost().rounds == terms + 1


@every_kind
def test_leaves_may_differ_in_dtype(kind):
    b = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(3, jnp.bfloat16)}
    found = KINDS[kind](lambda v: jax.tree.map(lambda a: a / 2, v), b, terms=40)
    assert jax.tree.map(lambda a: a.dtype, found.value) == {
        "a": jnp.float32,
        "b": jnp.bfloat16,
    }
    np.testing.assert_allclose(found.value["a"], 2.0, rtol=1e-2)
    np.testing.assert_allclose(found.value["b"].astype(float), 2.0, rtol=1e-2)
