"""Derivatives of rounds, compiled: the plain program's, in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests import rounds
from tests.compile.programs import (
    CHUNKS,
    CLIENTS,
    average,
    check_same,
    check_same_for_each,
    make_data,
    make_params,
    make_weights,
    mean_loss,
    train,
)
from tests.subjects import assert_same, gather

pytestmark = pytest.mark.usefixtures("x64")


def _after(params, data, weights, lr):
    return mean_loss(average(params, data, weights, lr), data)


def _args():
    return make_params(), make_data(), make_weights(), jnp.asarray(0.1)


@functools.cache
def _plain(argnums):
    """The value and the derivatives of ``_after``, which many tests compare with."""
    return jax.jit(jax.value_and_grad(_after, argnums))(*_args())


@functools.cache
def _plain_train():
    plain = jax.value_and_grad(rounds.plain_train, rounds.ALL)
    return jax.jit(plain)(*rounds.make_args())


# ---- against plain JAX ---------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3])
def test_gradient_in_all_arguments_equals_the_plain_programs(chunk):
    args = rounds.make_args()
    value = fad.jit(jax.value_and_grad(rounds.train, rounds.ALL), chunk=chunk)(*args)
    assert_same(value, _plain_train(), tol=1e-12)


@pytest.mark.parametrize(("remat", "chunk"), [(True, 3), (False, 1), (None, 1)])
def test_gradient_with_and_without_recomputation(remat, chunk):
    args = rounds.make_args()

    def run(*args):
        return rounds.train(*args, remat=remat)

    actual = fad.jit(jax.grad(run, (0, 1, 2)), chunk=chunk)(*args)
    assert_same(actual, _plain_train()[1][:3], tol=1e-12)


# ---- modes ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse", "mixed"])
def test_modes(mode):
    args = _args()
    gradient = fad.jit(fad.grad(_after, 3, mode=mode), chunk=3)
    assert_same(gradient(*args), _plain((0, 3))[1][1], tol=1e-12)


@pytest.mark.parametrize(
    ("mode", "remat"), [("reverse", True), ("reverse", False), ("mixed", True)]
)
def test_modes_and_recomputation(mode, remat):
    args = _args()
    gradient = fad.value_and_grad(_after, (0, 3), mode=mode, remat=remat)
    assert_same(fad.jit(gradient, chunk=3)(*args), _plain((0, 3)), tol=1e-12)


def test_jvp_vjp_and_jacobian():
    params, data, weights, lr = _args()
    rate = lambda lr: average(params, data, weights, lr)  # noqa: E731
    check_same(lambda lr: fad.jvp(rate, (lr,), (lr,)), lr, chunks=(3,))
    check_same(lambda lr: fad.vjp(rate, lr)[1](params)[0], lr, chunks=(3,))
    check_same(fad.jacobian(rate, mode="reverse"), lr, chunks=(3,))


# ---- higher order --------------------------------------------------------------------


def test_hessian():
    _, data, weights, lr = _args()

    def run(lr, b):
        return _after({"w": jnp.ones((3, 2)) * b.reshape(1, 2)}, data, weights, lr)

    check_same(jax.hessian(run, (0, 1)), lr, jnp.ones(2), chunks=(3,))


@pytest.mark.parametrize("outer", [jax.grad, jax.jacfwd])
def test_derivative_of_a_gradient(outer):
    def by_rate(lr, params, data, weights):
        return jax.grad(_after, 3)(params, data, weights, lr)

    params, data, weights, lr = _args()
    check_same(outer(by_rate), lr, params, data, weights, chunks=(3,))


def test_hypergradient_by_an_inner_gradient_step():
    def outer(lr, params, data):
        grads = fad.grad(mean_loss)(params, data)
        new = jax.tree.map(lambda p, g: p - lr * g, params, grads)
        return mean_loss(new, data)

    params, data, _, lr = _args()
    check_same(fad.value_and_grad(outer, (0, 1)), lr, params, data, chunks=(3, None))


# ---- by what lives at the clients ----------------------------------------------------


@pytest.mark.parametrize("argnum", [1, 2], ids=["data", "weights"])
def test_per_client_gradients(argnum):
    gradient = fad.grad(_after, argnum, mode="reverse")
    for chunk in CHUNKS:
        out = fad.jit(gradient, chunk=chunk)(*_args())
        assert isinstance(out, fad.AtClients)
        assert_same(out, _plain((1, 2))[1][argnum - 1], tol=1e-12)


def test_gradients_of_a_per_client_parameter():
    """Personal parts of a model: one gradient per client, and one for all."""

    @fad.program
    def run(shared, own, data):
        work = lambda s, o, d: jnp.mean((d["x"] @ (s * o) - d["y"][:, 0]) ** 2)  # noqa: E731
        return fad.mean(fad.map(work, fad.broadcast(shared), own, data))

    own = fad.AtClients(jnp.asarray(np.random.default_rng(0).normal(size=(CLIENTS, 3))))
    args = jnp.arange(3.0), own, make_data()
    check_same(jax.grad(run, (0, 1)), *args)


# ---- through rounds ------------------------------------------------------------------


def test_gradient_through_a_scan_of_rounds():
    check_same(jax.value_and_grad(train, (0, 3)), *_args())


def test_forward_mode_through_a_scan_of_rounds():
    check_same(fad.grad(train, 3, mode="forward"), *_args(), chunks=(3,))


def test_product_with_the_hessian_through_a_scan_of_rounds():
    params, data, weights, lr = _args()

    def product(params):
        gradient = jax.grad(lambda p: train(p, data, weights, lr))
        return jax.jvp(gradient, (params,), (params,))[1]

    check_same(product, params, chunks=(3,))


@pytest.mark.parametrize("policy", [None, fad.save_aggregates])
def test_gradient_through_checkpoints(policy):
    def run(params, data, weights, lr):
        one = jax.checkpoint(average, policy=policy)

        def body(p, _):
            return one(p, data, weights, lr), None

        params, _ = jax.lax.scan(body, one(params, data, weights, lr), None, length=2)
        return mean_loss(params, data)

    check_same(jax.grad(run, (0, 3)), *_args(), chunks=(3,))


def test_gradient_through_nested_scans():
    def run(params, data, weights, lr):
        def round_(p, _):
            return average(p, data, weights, lr), None

        def epoch(p, rate):
            p, _ = jax.lax.scan(round_, p, None, length=2)
            return jax.tree.map(lambda v: rate * v, p), mean_loss(p, data)

        params, losses = jax.lax.scan(epoch, params, jnp.array([1.0, 0.9]))
        return losses.sum() + mean_loss(params, data)

    check_same(jax.grad(run, (0, 3)), *_args(), chunks=(3,))


def test_gradient_through_a_cond():
    def run(params, data, weights, lr, index):
        idle = lambda p: jax.tree.map(lambda v: lr * v, p)  # noqa: E731
        new = jax.lax.cond(
            index == 1, lambda p: average(p, data, weights, lr), idle, params
        )
        return mean_loss(new, data)

    both = [(*_args(), jnp.asarray(index)) for index in (0, 1)]
    check_same_for_each(jax.grad(run, (0, 3)), both, chunks=(3,))


def test_gradient_through_a_cond_in_a_scan():
    def run(params, data, weights, lr):
        def body(p, i):
            work = lambda p: average(p, data, weights, lr)  # noqa: E731
            return jax.lax.cond(i % 2 == 0, work, lambda p: p, p), mean_loss(p, data)

        params, losses = jax.lax.scan(body, params, jnp.arange(3))
        return losses.sum() + mean_loss(params, data)

    check_same(jax.value_and_grad(run, (0, 3)), *_args(), chunks=(3,))


# ---- custom rules --------------------------------------------------------------------


@jax.custom_vjp
def _clip_back(x):
    return x


_clip_back.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_jvp
def _square(x):
    return x**2


@_square.defjvp
def _(primals, tangents):
    return _square(*primals), 3.0 * tangents[0]


@pytest.mark.parametrize("rule", [_clip_back, _square])
def test_custom_rules_at_the_client_and_at_the_server(rule):
    @fad.program
    def run(w, data):
        inner = fad.map(lambda x: rule(w * x), data)
        return rule(fad.mean(inner)), fad.sum(inner)

    data = fad.AtClients(jnp.arange(7.0))
    check_same(run, jnp.asarray(0.5), data)
    check_same(jax.jacrev(run), jnp.asarray(0.5), data, chunks=(3,))


def test_a_custom_rule_around_a_round():
    @jax.custom_vjp
    def run(w, data):
        return mean_loss(w, data)

    def back(residual, g):
        params, data = residual
        zeros = jax.tree.map(jnp.zeros_like, data)
        return jax.tree.map(lambda v: 2 * g * v, average(params, data, weights)), zeros

    weights = make_weights()
    run.defvjp(lambda w, data: (run(w, data), (w, data)), back)
    check_same(jax.grad(run), make_params(), make_data())


def test_jax_grad_of_the_compiled_function():
    args = _args()
    compiled = fad.jit(_after, chunk=3)
    expected = _plain((0, 3))[1][1]
    assert_same(jax.grad(compiled, 3)(*args), expected, tol=1e-12)
    assert_same(fad.jit(jax.grad(compiled, 3), chunk=1)(*args), expected, tol=1e-12)
    assert gather(expected).shape == ()
