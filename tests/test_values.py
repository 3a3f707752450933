"""A program's values: eager, jitted and plain JAX agree, and so do the types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests import rounds
from tests.subjects import (
    MESHES,
    OPERATIONS,
    SUBJECTS,
    N,
    Subject,
    assert_same,
    on_mesh,
    over,
    types,
)


@over(SUBJECTS)
def test_eager_and_jit_give_the_plain_values(subject):
    with subject.precision():
        args = subject.args()
        eager, jitted = subject.program(*args), jax.jit(subject.program)(*args)
        expected = subject.marked(*args)
        assert_same(eager, expected)
        assert_same(jitted, expected)
        assert types(eager) == types(jitted)
        assert types(eager) == types(jax.eval_shape(subject.program, *args))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_stand_where_they_should(operation):
    out = Subject(operation, "float32", "nested")
    result = out.program(*out.args())
    stays = operation in ("broadcast", "select") or operation.startswith("map")
    assert isinstance(result, fad.AtClients) == stays


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "none"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_values_on_a_mesh(operation, mesh):
    subject = Subject(operation, "float32", "nested")
    args = subject.args()
    expected = subject.marked(*args)
    with on_mesh(mesh):
        assert_same(jax.jit(subject.program)(*args), expected)


# Of what the sum and the mean of a dtype are: the same eagerly and under jit.
RULES = {
    "bool": ("int32", "float32"),
    "int8": ("int32", "float32"),
    "uint8": ("uint32", "float32"),
    "int32": ("int32", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float32": ("float32", "float32"),
    "complex64": ("complex64", "complex64"),
}


@pytest.mark.parametrize("dtype", RULES)
def test_dtype_rules(dtype):
    x = fad.AtClients(jnp.ones(N, dtype))
    total, mean = RULES[dtype]
    for transform in (lambda f: f, jax.jit):
        assert transform(fad.program(fad.sum))(x).dtype == total
        assert transform(fad.program(fad.mean))(x).dtype == mean
        assert transform(fad.program(fad.weighted_mean))(x, x).dtype == mean


@pytest.mark.parametrize("x", ["bfloat16", "float16", "float32", "int32", "bool"])
@pytest.mark.parametrize("weights", ["bfloat16", "float32", "int32", "bool"])
def test_weights_of_any_real_dtype(x, weights):
    values = fad.AtClients(jnp.ones((N, 2), x))
    out = fad.program(fad.weighted_mean)(values, fad.AtClients(jnp.ones(N, weights)))
    assert_same(out, jnp.ones(2, RULES[x][1]))


@pytest.mark.usefixtures("x64")
def test_weights_in_double_precision():
    x, w = jnp.arange(4.0), jnp.array([1.0, 0.0, 2.5, 1.0])
    out = fad.program(fad.weighted_mean)(fad.AtClients(x), fad.AtClients(w))
    assert_same(out, (x * w).sum() / w.sum())


def test_half_precision_accumulates_in_single():
    x = jnp.array([256.0] + [1.0] * 7, jnp.bfloat16)  # each 256 + 1 is 256 again
    assert fad.program(fad.sum)(fad.AtClients(x)) == 264


@pytest.mark.parametrize("x", [2.0, 2, True, 2j])
def test_python_scalars_stay_weak(x):
    sent = fad.program(fad.broadcast, clients=3)
    eager, jitted = sent(x).unsafe_gather(), jax.jit(sent)(x).unsafe_gather()
    assert types(eager) == types(jitted)
    assert jax.typeof(eager).weak_type == jax.typeof(jnp.asarray(x)).weak_type
    assert_same(eager, jnp.full(3, x))


def test_weak_types_pass_through_a_map():
    sent = fad.program(lambda x: fad.map(lambda v: 2 * v, fad.broadcast(x)), clients=3)
    assert jax.typeof(sent(1.0).unsafe_gather()).weak_type
    assert jax.typeof(jax.jit(sent)(1.0).unsafe_gather()).weak_type


def test_numpy_arrays_are_client_values():
    x = fad.AtClients({"a": np.arange(6.0, dtype=np.float32).reshape(3, 2)})
    assert_same(fad.program(fad.sum)(x), {"a": jnp.array([6.0, 9.0])})


def test_a_map_without_arguments():
    out = fad.program(lambda: fad.map(lambda: 1.0), clients=3)()
    assert_same(out, jnp.ones(3))


def test_a_map_of_constants_keeps_the_client_axis():
    x = fad.AtClients(jnp.arange(3.0))
    out = fad.program(lambda a: fad.map(lambda v: (v, jnp.zeros(2)), a))(x)
    assert_same(out, (jnp.arange(3.0), jnp.zeros((3, 2))))


def test_each_client_draws_from_its_own_key():
    keys = jax.random.split(jax.random.key(1), 3)
    draw = fad.program(lambda k: fad.map(lambda key: jax.random.normal(key, (2,)), k))
    expected = jnp.stack([jax.random.normal(k, (2,)) for k in keys])
    assert_same(draw(fad.AtClients(keys)), expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_training_equals_the_plain_program(transform):
    args = rounds.make_args()
    assert_same(transform(rounds.train)(*args), transform(rounds.plain_train)(*args))
