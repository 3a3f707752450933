"""Transposition: broadcast and sum are each other's, and twice is the thing itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests import jaxprs
from tests.subjects import LINEAR, N, Subject, assert_same, inner, make_like, over


def _transpose(fn, *args):
    """Return the transpose of ``fn`` at the types of ``args``, of one cotangent."""
    return jax.linear_transpose(fn, *args)


@over(LINEAR)
def test_adjoint_law(subject):
    with subject.precision():
        (x,) = subject.args()
        y = make_like(jax.eval_shape(subject.program, x), seed=5)
        (turned,) = _transpose(subject.program, x)(y)
        assert jax.tree.structure(turned) == jax.tree.structure(x)
        tol = {"float64": 1e-12, "float32": 1e-5}[subject.dtype]
        lhs, rhs = inner(subject.program(x), y), inner(x, turned)
        np.testing.assert_allclose(lhs, rhs, rtol=tol, atol=tol)


@over(LINEAR)
def test_transposing_twice_gives_the_program(subject):
    with subject.precision():
        (x,) = subject.args()
        out = jax.eval_shape(subject.program, x)
        twice = _transpose(lambda y: _transpose(subject.program, x)(y)[0], out)
        assert_same(twice(x)[0], subject.program(x))


@pytest.mark.parametrize(
    ("operation", "turned"),
    [
        ("broadcast", "fad_sum"),
        ("sum", "fad_broadcast"),
        ("select", "fad_deselect"),
        ("deselect", "fad_select"),
    ],
)
def test_each_is_the_others_transpose(operation, turned):
    subject = Subject(operation, "float32", "array")
    (x,) = subject.args()
    y = subject.program(x)
    found = jaxprs.equations(jaxprs.trace(_transpose(subject.program, x), y))
    assert [e.primitive.name for e in found] == [turned]


def test_the_transpose_of_a_linear_map_is_a_map():
    x = fad.AtClients(jnp.ones((N, 3)))
    matrix = jnp.arange(6.0).reshape(2, 3)
    program = fad.program(lambda a: fad.map(lambda v: matrix @ v, a))
    y = fad.AtClients(jnp.ones((N, 2)))
    (turned,) = _transpose(program, x)(y)
    assert_same(turned, jnp.broadcast_to(matrix.sum(0), (N, 3)))
    assert jaxprs.wire(_transpose(program, x), y) == (0, 1, 0)  # matrix went before


def test_the_transpose_of_a_map_by_its_closed_over_value_is_a_sum():
    data = fad.AtClients(jnp.arange(12.0).reshape(N, 3))
    program = fad.program(lambda w, d: fad.map(lambda v: jnp.vdot(v, w), d))
    ct = fad.AtClients(jnp.ones(N))
    transposed = _transpose(lambda w: program(w, data), jnp.ones(3))
    assert_same(transposed(ct)[0], data.unsafe_gather().sum(0))
    assert jaxprs.wire(transposed, ct) == (0, 1, 1)


def test_a_linear_input_that_is_not_used_gets_a_zero():
    program = fad.program(lambda a: fad.map(lambda v: v["x"], a))
    x = fad.AtClients({"x": jnp.ones(N), "unused": jnp.ones(N)})
    (turned,) = _transpose(program, x)(fad.AtClients(jnp.ones(N)))
    assert_same(turned, {"unused": jnp.zeros(N), "x": jnp.ones(N)})


@pytest.mark.parametrize(
    "fn", [fad.broadcast, fad.sum, fad.mean], ids=lambda f: f.__name__
)
def test_an_ignored_result_has_a_zero_cotangent(fn):
    @jax.jit
    def both(x):
        return fad.program(fn, clients=N)(x), fad.program(fn, clients=N)(x)

    x = jnp.ones((N, 1)) if fn is not fad.broadcast else jnp.ones(())
    x = x if fn is fad.broadcast else fad.AtClients(x)
    one = jax.jacrev(jax.jit(lambda v: both(v)[0]))(x)
    assert_same(one, jax.jacrev(fad.program(fn, clients=N))(x))
