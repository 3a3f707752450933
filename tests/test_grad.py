"""Reverse mode: gradients equal the plain program's, by server and client values."""

import jax
import jax.numpy as jnp
import pytest
from jax.test_util import check_grads

import fad
from tests import rounds
from tests.subjects import (
    OPERATIONS,
    SMOOTH,
    Subject,
    assert_same,
    gather,
    inner,
    make_like,
    over,
)


def _scalar(fn, args):
    """Contract the outputs of ``fn`` with fixed weights."""
    weights = make_like(jax.eval_shape(fn, *args), seed=11)
    return lambda *a: inner(fn(*a), weights)


def _floats(subject):
    """Return program, oracle and arguments, without integer weights."""
    args = subject.args()
    if subject.operation != "counted_mean":
        return subject.program, subject.marked, args
    counts = args[1]
    program = lambda x: subject.program(x, counts)  # noqa: E731
    return program, lambda x: subject.marked(x, counts), args[:1]


@over(SMOOTH)
def test_grad_equals_plain(subject):
    with subject.precision():
        program, plain, args = _floats(subject)
        argnums = tuple(range(len(args)))
        actual = jax.jit(jax.grad(_scalar(program, args), argnums))(*args)
        assert jax.tree.structure(actual) == jax.tree.structure(args)
        assert_same(actual, jax.grad(_scalar(plain, args), argnums)(*args))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_both_modes_to_second_order_numerically(operation):
    program, _, args = _floats(Subject(operation, "float64", "array"))
    to64 = lambda v: v.astype(jnp.float64)  # noqa: E731
    args = jax.tree.map(to64, args)
    check_grads(jax.jit(program), args, order=2, modes=("fwd", "rev"), rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("remat", [False, True])
def test_gradient_of_training_by_everything(remat):
    args = rounds.make_args()
    train = lambda *a: rounds.train(*a, remat=remat)  # noqa: E731
    actual = jax.jit(jax.value_and_grad(train, rounds.ALL))(*args)
    expected = jax.jit(jax.value_and_grad(rounds.plain_train, rounds.ALL))(*args)
    assert_same(actual, expected)


@pytest.mark.usefixtures("x64")
def test_eager_gradient():
    params, _, _, data, _ = rounds.make_args()
    plain = lambda p: jax.vmap(rounds.loss, (None, 0))(p, gather(data)).mean()  # noqa: E731
    assert_same(jax.grad(rounds.mean_loss)(params, data), jax.grad(plain)(params))


@pytest.mark.usefixtures("x64")
def test_training_numerically():
    params, server_lr, client_lr, data, weights = rounds.make_args()
    train = jax.jit(lambda p, s, c: rounds.train(p, s, c, data, weights))
    check_grads(train, (params, server_lr, client_lr), order=1, modes=("rev",))


def test_client_gradients_are_client_values():
    args = rounds.make_args()
    data, weights = jax.eval_shape(jax.grad(rounds.train, (3, 4)), *args)
    assert isinstance(data, fad.AtClients)
    assert isinstance(weights, fad.AtClients)
    assert repr(data) == repr(args[3])  # the same structure, shapes and dtypes
    assert data["x"].num_clients == rounds.CLIENTS


def test_weighted_mean_derivatives_have_their_closed_form():
    x, w = jnp.array([1.0, 4.0, -2.0]), jnp.array([2.0, 0.0, 3.0])
    mean = fad.program(fad.weighted_mean)
    by_x, by_w = jax.grad(mean, (0, 1))(fad.AtClients(x), fad.AtClients(w))
    m, total = (x * w).sum() / w.sum(), w.sum()
    assert_same(by_x, w / total)
    assert_same(by_w, (x - m) / total)


def test_gradient_by_integer_leaves_is_float0():
    x = fad.AtClients({"x": jnp.ones(3), "n": jnp.arange(3)})
    total = fad.program(
        lambda a: fad.sum(fad.map(lambda v: v["x"] * v["n"].astype(float), a))
    )
    out = jax.grad(total, allow_int=True)(x)
    assert out["n"].unsafe_gather().dtype == jax.dtypes.float0
    assert_same(out["x"], jnp.arange(3.0))


def test_gradient_through_a_random_client():
    keys = fad.AtClients(jax.random.split(jax.random.key(0), 3))

    @fad.program
    def program(scale, keys):
        return fad.mean(fad.map(lambda k: jnp.sin(scale) * jax.random.normal(k), keys))

    noise = jax.vmap(jax.random.normal)(keys.unsafe_gather()).mean()
    assert_same(jax.grad(program)(0.5, keys), jnp.cos(0.5) * noise)


def test_custom_derivatives_inside_a_map_are_kept():
    @jax.custom_vjp
    def clip(x):
        return x

    clip.defvjp(lambda x: (x, None), lambda _, ct: (jnp.clip(ct, -1, 1),))
    program = fad.program(lambda a: fad.sum(fad.map(lambda v: 5 * clip(v), a)))
    assert_same(jax.grad(program)(fad.AtClients(jnp.ones(3))), jnp.ones(3))
    remat = fad.program(
        lambda a: fad.sum(fad.map(lambda v: 5 * clip(v), a, remat=True))
    )
    assert_same(jax.grad(remat)(fad.AtClients(jnp.ones(3))), jnp.ones(3))


def test_stop_gradient_inside_a_map():
    program = fad.program(
        lambda a: fad.sum(fad.map(lambda v: v * jax.lax.stop_gradient(v), a))
    )
    assert_same(jax.grad(program)(fad.AtClients(jnp.arange(3.0))), jnp.arange(3.0))


def test_gradients_in_half_precision_keep_their_dtype():
    args = jax.tree.map(lambda v: v.astype(jnp.bfloat16), rounds.make_args())
    grads = jax.eval_shape(jax.grad(rounds.one_round, rounds.ALL), *args)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.bfloat16
