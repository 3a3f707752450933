"""Sketches: the same matrix however it is asked for, its law, memory, bad input."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import FadError
from fad.decoders import dense, gaussian, hadamard
from fad.decoders._gaussian import _threefry

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
KINDS = {
    "gaussian": lambda: gaussian(5, 12, 3),
    "hadamard": lambda: hadamard(5, 12, 3),  # not a power of two
    "hadamard, 16": lambda: hadamard(5, 16, 3),
    "dense": lambda: dense(jnp.asarray(RNG.normal(size=(5, 12)))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("x64")
def test_products_are_of_one_matrix(kind):
    sketch = KINDS[kind]()
    p, d = sketch.rows, sketch.size
    theta, v = RNG.normal(size=d), RNG.normal(size=p)

    @jax.jit
    def products(sketch, theta, v):
        columns = sketch.columns(jnp.arange(d)).astype(float)
        row = jax.grad(lambda t: jnp.vdot(v, sketch.apply(t)))(theta)
        column = jax.grad(lambda v: jnp.vdot(theta, sketch.transpose(v)))(v)
        made = sketch.apply(theta), sketch.transpose(v), sketch.gram(v)
        return columns, *made, row, column, sketch.largest()

    s, *rest, largest = products(sketch, jnp.asarray(theta), jnp.asarray(v))
    s = np.asarray(s)
    truth = (s @ theta, s.T @ v, s @ (s.T @ v), s.T @ v, s @ theta)
    for made, true in zip(rest, truth, strict=True):
        np.testing.assert_allclose(made, true, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(largest, np.linalg.eigvalsh(s @ s.T)[-1], rtol=0.03)
    if "hadamard" in kind:
        np.testing.assert_allclose(s @ s.T, d / p * np.eye(p), atol=1e-6)


def _in_blocks(sketch: Any, block: int) -> Any:
    return dataclasses.replace(sketch, block=block)


@pytest.mark.usefixtures("x64")
def test_blocks_and_a_traced_seed_do_not_change_the_sketch():
    whole = gaussian(6, 23, 2**32 - 1)
    theta, v = jnp.asarray(RNG.normal(size=23)), jnp.asarray(RNG.normal(size=6))

    @jax.jit
    def products(sketch, seed):
        traced = gaussian(6, 23, seed).apply(theta)
        return traced, sketch.apply(theta), sketch.transpose(v), sketch.gram(v)

    truth = products(whole, jnp.int32(-1))  # the same 32 bits
    np.testing.assert_allclose(truth[0], truth[1], rtol=1e-12)
    for block in (1, 7):
        made = products(_in_blocks(whole, block), jnp.int32(-1))
        for x, y in zip(made, truth, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12)


def test_the_words_are_those_of_threefry():
    data = np.arange(5, dtype=np.uint32)
    key = jax.random.key(11, impl="threefry2x32")
    truth = [jax.random.key_data(jax.random.fold_in(key, i)) for i in data]
    words = _threefry(jnp.uint32(11), jnp.zeros(5, jnp.uint32), jnp.asarray(data))
    np.testing.assert_array_equal(np.stack(words, axis=1), np.stack(truth))


def test_gaussian_entries_are_normal_and_independent():
    p, d = 64, 5000
    columns = jax.jit(lambda seed: gaussian(p, d, seed).columns(jnp.arange(d)))
    s, other = (np.asarray(columns(k), float) * np.sqrt(p) for k in (0, 1))
    error = 5 / np.sqrt(p * d)
    moments = [(s**k).mean() for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=10 * error)
    assert np.abs(s).max() > 4
    for pair in ((s[1:], s[:-1]), (s[:, 1:], s[:, :-1]), (s, other), (s[:32], s[32:])):
        assert abs((pair[0] * pair[1]).mean()) < 2 * error
    spectrum = np.linalg.eigvalsh(s @ s.T / d)
    assert abs(spectrum - 1).max() < 2.5 * np.sqrt(p / d)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", [gaussian, hadamard])
def test_dtypes_are_kept(kind, dtype):
    sketch = kind(3, 8, 0)
    theta, v = jnp.ones(8, dtype), jnp.ones(3, dtype)
    made = jax.eval_shape(lambda: (sketch.apply(theta), sketch.transpose(v)))
    assert [x.dtype for x in made] == [dtype, dtype]


class TestMemory:
    @pytest.fixture
    def quick(self):
        return False

    def test_the_matrix_is_never_whole(self):
        rows, size = 500, 20_000
        sketch = gaussian(rows, size, 0)

        def loss(theta):
            residual = sketch.apply(theta)
            return jnp.vdot(residual, residual) + jnp.sum(sketch.transpose(residual))

        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(size)).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        assert analysis.temp_size_in_bytes < 4 * rows * size / 3


BAD = {
    "rows=0": (lambda: gaussian(0, 3, 0), "gaussian: expected rows to be an int >= 1"),
    "size": (lambda: hadamard(1, 2.5, 0), "hadamard: expected size to be an int >= 1"),  # type: ignore[arg-type]
    "rows > size": (
        lambda: gaussian(4, 3, 0),
        "gaussian: rows=4 is above size=3; a sketch is no longer than what it is of. "
        "Take at most as many rows, or fad.decoders.identity()",
    ),
    "seed": (
        lambda: gaussian(1, 3, 0.5),  # type: ignore[arg-type]
        "gaussian: seed is float 0.5; expected an int, or an array [] of one",
    ),
    "seeds": (lambda: hadamard(1, 3, jnp.arange(2)), "seed is int32[2]; expected an"),
    "matrix": (
        lambda: dense(jnp.ones(3)),
        "dense: matrix is float32[3]; expected a matrix of real numbers, [p, d]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    make, match = BAD[name]
    with pytest.raises(FadError, match=re.escape(match)):
        make()
