"""Encodings are the derivatives of what is decoded, for every decoder and solver."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fad.decoders import (
    closed_form,
    dense,
    gaussian,
    hadamard,
    identity,
    lasso,
    min_norm,
    minimiser,
    proximal,
)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]

P, D = 6, 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=P)
MIXED, FACTOR = RNG.normal(size=(D, P)), RNG.normal(size=(D, D))
HESSIAN = np.eye(D) + FACTOR @ FACTOR.T / D
LARGEST = float(np.linalg.eigvalsh(HESSIAN)[-1] + 2)
OPTIONS = {"steps": 2000, "step": 1 / LARGEST, "largest": LARGEST}
EXACTLY = {"steps": 20_000, "tolerance": 1e-15}
L1, DATA = 0.2, 0.3


def gradient(x, y, data):
    """That of ``y'Hy / 2 + 2 sum log cosh(y / 2) - y'Mx + |data y|^2 / 2``."""
    return HESSIAN @ y + jnp.tanh(y / 2) - MIXED @ x + data**2 * y


def prox(x, y, data, step):
    return jnp.sign(y) * jax.nn.relu(jnp.abs(y) - step * (1.5 + 0 * x[0] + data))


def zeros(x, data):
    return jnp.zeros(D)


SKETCHES = {
    "lasso, gaussian": gaussian(P, D, 1),
    "lasso, working sets": gaussian(P, 40, 0),
    "lasso, hadamard": hadamard(P, D, 7),
}
MINIMISER = minimiser(gradient, zeros, **OPTIONS)
NEUMANN = {"solve": "neumann", "terms": 400, **OPTIONS}
DECODERS = {
    "minimiser, cg": MINIMISER,
    "minimiser, neumann": minimiser(gradient, zeros, **NEUMANN),
    "minimiser, Eq. 3": minimiser(gradient, zeros, **{**NEUMANN, "terms": 5}),
    "FISTA": proximal(gradient, prox, zeros, **OPTIONS),
    "ISTA, neumann": proximal(gradient, prox, zeros, accelerated=False, **NEUMANN),
    "closed form": closed_form(lambda x, data: jnp.tanh(MIXED @ x) * data),
    "identity": identity(),
    "lasso, gaussian": lasso(SKETCHES["lasso, gaussian"], l1=L1, **EXACTLY),
    "lasso, working sets": lasso(
        SKETCHES["lasso, working sets"], l1=L1, capacity=8, **EXACTLY
    ),
    "lasso, hadamard": lasso(
        SKETCHES["lasso, hadamard"], l1=L1, step=1.9 * P / D, **EXACTLY
    ),
    "min norm, gaussian": min_norm(gaussian(P, D, 0)),
    "min norm, hadamard": min_norm(hadamard(P, D, 0)),
}


class Found(NamedTuple):
    """What decodes, as arrays of NumPy: ``[d]``, dy/dx by encoding and by differences.

    ``linear [p, d]`` is what the unit vectors decode to.
    """

    y: Any
    encoded: Any
    differences: Any
    linear: Any
    residual: float


@functools.cache
def found(name):
    """Run one compiled program at X, beside it, and at the unit vectors."""
    decoder, way = DECODERS[name], 1e-5

    @jax.jit
    def at(x):
        y, encode = jax.vjp(lambda x: decoder.decode(x, DATA), x)
        encoded = jax.vmap(lambda v: encode(v)[0])(jnp.eye(y.size))
        return y, encoded, decoder.residual(x, y, DATA)

    y, encoded, residual = at(X)
    pairs = [at(X + e)[0] - at(X - e)[0] for e in way * np.eye(P)]
    differences = np.stack(pairs, axis=1) / (2 * way)
    linear = np.stack([at(e)[0] for e in np.eye(P)])
    return Found(np.asarray(y), np.asarray(encoded), differences, linear, residual)


@pytest.mark.parametrize("name", [name for name in DECODERS if "Eq" not in name])
def test_an_encoding_is_the_central_difference_of_decoding(name):
    is_ = found(name)
    assert np.abs(is_.encoded).max() > 0.1
    np.testing.assert_allclose(is_.encoded, is_.differences, rtol=1e-6, atol=1e-6)
    assert is_.residual < 1e-8
    if "lasso" in name or "ISTA" in name:
        assert 1 < np.count_nonzero(is_.y) < min(is_.y.size, P + 1)


def test_a_minimiser_is_differentiated_twice():
    point = jnp.asarray(X), jnp.asarray(DATA)
    decode = jax.jit(MINIMISER.decode)
    check_grads(decode, point, order=2, modes=("rev",), rtol=1e-4)


def test_lasso_is_differentiated_by_its_penalty_and_the_sketch():
    @jax.jit
    def decode(x, l1, matrix):
        decoder = lasso(dense(matrix), l1=l1, share=True, capacity=8, **EXACTLY)
        return decoder.decode(x, None)

    point = jnp.asarray(X), jnp.asarray(0.4), jnp.asarray(RNG.normal(size=(P, 20)))
    check_grads(decode, point, order=1, modes=("fwd", "rev"), rtol=1e-5)


def numpy_lasso(s, omega):
    """Minimise by ISTA, as the paper does."""
    step = 1 / np.linalg.eigvalsh(s @ s.T)[-1]
    theta = np.zeros(s.shape[1])
    for _ in range(4000):
        ahead = theta + step * s.T @ (omega - s @ theta)
        theta = np.sign(ahead) * np.maximum(np.abs(ahead) - step * L1, 0)
    return theta, step


@pytest.mark.parametrize("name", SKETCHES)
def test_lasso_is_the_papers_with_the_right_sign(name):
    y, encoded, *_ = found(name)
    s = np.asarray(jax.jit(jax.vmap(SKETCHES[name].apply))(jnp.eye(y.size))).T
    theta, step = numpy_lasso(s, X)
    np.testing.assert_allclose(y, theta, rtol=1e-7, atol=1e-9)

    active = theta != 0
    on = np.zeros_like(s)
    on[:, active] = s[:, active] @ np.linalg.inv(s[:, active].T @ s[:, active])
    np.testing.assert_allclose(encoded.T, on, rtol=1e-7, atol=1e-9)
    u, eye = np.diag(active.astype(float)), np.eye(y.size)
    eq5 = step * s @ u @ np.linalg.inv(eye - (eye - step * s.T @ s) @ u)
    np.testing.assert_allclose(encoded.T, eq5, rtol=1e-7, atol=1e-9)  # not -eq5


def test_neumann_is_the_sum_of_eq_3_term_by_term():
    y, encoded, *_ = found("minimiser, Eq. 3")
    step = OPTIONS["step"]
    h = HESSIAN + np.diag((1 - np.tanh(y / 2) ** 2) / 2 + DATA**2)
    powers = [np.linalg.matrix_power(np.eye(D) - step * h, q) for q in range(6)]
    # The paper's Enc is its negative, with grad_xy g = -M^T.
    np.testing.assert_allclose(encoded, step * sum(powers) @ MIXED, rtol=1e-10)


@pytest.mark.parametrize("kind", [gaussian, hadamard])
def test_without_a_penalty_the_shortest_solution_is_taken(kind):
    s = np.asarray(kind(P, D, 0).columns(jnp.arange(D)), float)
    assert np.linalg.matrix_rank(s.T @ s) == P < D  # Remark 2 inverts this matrix.
    is_ = found(f"min norm, {kind.__name__}")
    np.testing.assert_allclose(is_.linear.T, np.linalg.pinv(s), atol=1e-6)
    np.testing.assert_allclose(is_.encoded, is_.linear.T, atol=1e-12)
