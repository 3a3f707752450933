"""Forward mode: tangents equal the plain program's, and live where values live."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import rounds
from tests.subjects import SMOOTH, N, assert_same, make_like, over


@over(SMOOTH)
def test_jvp_equals_plain(subject):
    with subject.precision():
        args = subject.args()
        tangents = make_like(args, seed=7)
        if subject.operation == "counted_mean":  # counts carry no tangent
            args, counts = args[:1], args[1:]
            tangents = tangents[:1]
            program = lambda *a: subject.program(*a, *counts)  # noqa: E731
            plain = lambda *a: subject.marked(*a, *counts)  # noqa: E731
        else:
            program, plain = subject.program, subject.marked
        actual = jax.jit(lambda *a: jax.jvp(program, *a))(args, tangents)
        assert_same(actual, jax.jvp(plain, args, tangents))
        values, dots = actual
        assert jax.tree.structure(values) == jax.tree.structure(dots)


def test_linearize_reuses_the_linear_map():
    x = fad.AtClients(jnp.arange(1.0, 4.0))
    cubes = fad.program(lambda a: fad.sum(fad.map(lambda v: v**3, a)))
    value, linear = jax.linearize(cubes, x)
    assert value == 36
    assert_same(linear(fad.AtClients(jnp.ones(3))), jnp.asarray(3.0 + 12 + 27))
    assert_same(linear(fad.AtClients(jnp.array([0.0, 1.0, 0.0]))), jnp.asarray(12.0))


def test_integer_and_key_arguments_carry_no_tangent():
    keys = fad.AtClients(jax.random.split(jax.random.key(0), N))
    counts = fad.AtClients(jnp.arange(N))

    @fad.program
    def program(scale, counts, keys):
        def work(count, key):
            return scale * count.astype(float) * jax.random.normal(key)

        return fad.sum(fad.map(work, counts, keys))

    value, tangent = jax.jvp(lambda s: program(s, counts, keys), (2.0,), (3.0,))
    assert_same(tangent, 1.5 * value)


def test_an_output_without_a_tangent_has_a_zero_one():
    x = fad.AtClients(jnp.arange(4.0))
    program = fad.program(lambda a: fad.map(lambda v: (v > 1, jnp.sign(v), v * v), a))
    (over_one, _, _), (no_tangent, zero, tangent) = jax.jvp(program, (x,), (x,))
    assert over_one.unsafe_gather().dtype == bool
    assert no_tangent.unsafe_gather().dtype == jax.dtypes.float0
    assert_same(zero, jnp.zeros(4))
    assert_same(tangent, 2 * jnp.arange(4.0) ** 2)


@pytest.mark.usefixtures("x64")
def test_jvp_of_training():
    args = rounds.make_args()
    tangents = make_like(args, seed=3)
    actual = jax.jit(lambda *a: jax.jvp(rounds.train, *a))
    expected = jax.jvp(rounds.plain_train, args, tangents)
    assert_same(actual(args, tangents), expected)


@pytest.mark.usefixtures("x64")
def test_jacfwd_of_training_by_the_hyperparameters():
    args = rounds.make_args()
    actual = jax.jit(jax.jacfwd(rounds.train, (1, 2)))(*args)
    assert_same(actual, jax.jit(jax.jacfwd(rounds.plain_train, (1, 2)))(*args))
