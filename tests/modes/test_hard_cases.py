"""Programs that an adversary would try: each equals jax.grad, or is refused by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad

DATA = fad.AtClients(jnp.arange(6.0).reshape(3, 2))
ONE = jnp.ones(2)
NAMED = ("forward", "reverse", "mixed", "mixed-products", "auto")


@fad.program
def square_of_sum(d):
    return jnp.sum(fad.sum(d)) ** 2


@fad.program
def learned_weights(weights, d):
    return fad.weighted_mean(fad.map(jnp.sum, d), weights)


@fad.program
def both_rounds(w, d):
    a = fad.mean(fad.map(lambda x: x * w, d))
    return fad.mean(fad.map(lambda x: jnp.sum((x - a) ** 2), d))


@fad.program
def counts(w, d):
    total = fad.sum(fad.map(lambda x: jnp.sum(w * x), d))
    return total / fad.sum(fad.map(lambda x: jnp.int32(1), d)).astype(total.dtype)


@fad.program
def custom_vjp(w, d):
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))
    return fad.mean(fad.map(lambda x: clipped(jnp.sum(w * x)), d))


@fad.program
def client_while(w, d):
    def work(x):
        keep = lambda c: c[0] < 3  # noqa: E731
        step = lambda c: (c[0] + 1, c[1] * jnp.sum(w * x))  # noqa: E731
        return jax.lax.while_loop(keep, step, (0, jnp.ones(())))[1]

    return fad.mean(fad.map(work, d))


@pytest.mark.parametrize(
    ("mode", "objective"),
    [
        *((mode, "rounds") for mode in NAMED),
        ("reverse", "memory"),  # what a mode leaves open: to recompute or not
        ("auto", "memory"),
        ("auto", {"rounds": 1.0}),
    ],
)
@pytest.mark.parametrize(
    ("fn", "args", "argnum"),
    [
        (square_of_sum, (DATA,), 0),
        (learned_weights, (fad.AtClients(jnp.array([1.0, 2.0, 3.0])), DATA), 0),
        (both_rounds, (ONE, DATA), 1),
        (both_rounds, (ONE, DATA), 0),
        (counts, (ONE, DATA), 0),
    ],
    ids=["sum", "weights", "data in both rounds", "server", "integer sum"],
)
def test_right_or_refused(fn, args, argnum, mode, objective):
    want = jax.grad(fn, argnum)(*args)
    gradient = fad.grad(fn, argnum, mode=mode, objective=objective)
    at_clients = isinstance(args[argnum], fad.AtClients)
    if mode == "mixed-products" and at_clients:
        with pytest.raises(fad.PlanError, match="client value"):
            gradient(*args)
        return
    got = gradient(*args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_products_refuse_a_client_input_of_the_last_round():
    with pytest.raises(fad.PlanError, match="cannot differentiate by a client value"):
        fad.grad(square_of_sum, mode="mixed-products")(DATA)


def test_auxiliary_at_the_clients():
    @fad.program
    def fn(w, d):
        each = fad.map(lambda x: jnp.sum(x * w), d)
        return fad.mean(each), {"each": each, "count": 3}

    for mode in ("forward", "reverse", "mixed", "auto"):
        gradient, aux = fad.grad(fn, mode=mode, has_aux=True)(ONE, DATA)
        np.testing.assert_allclose(gradient, [2.0, 3.0])
        np.testing.assert_allclose(aux["each"].unsafe_gather(), [1.0, 5.0, 9.0])
        assert aux["count"] == 3
    with pytest.raises(fad.PlanError, match="returns a client value that the last"):
        fad.grad(fn, mode="mixed-products", has_aux=True)(ONE, DATA)


def test_auxiliary_that_is_no_array():
    def fn(w, d):
        return both_rounds(w, d), {"name": "hi"}

    with pytest.raises(fad.FadError, match=r"aux\['name'\] is str 'hi'; expected arr"):
        fad.grad(fn, has_aux=True)(ONE, DATA)


@pytest.mark.parametrize("fn", [custom_vjp, client_while])
def test_auto_passes_over_modes_that_jax_refuses(fn):
    choice = fad.grad(fn).explain(ONE, DATA)
    assert choice.refused
    got = fad.grad(fn)(ONE, DATA)
    other = {"forward": jax.jacfwd, "reverse": jax.grad}
    known = other["reverse" if fn is custom_vjp else "forward"](fn)(ONE, DATA)
    np.testing.assert_allclose(got, known, rtol=1e-5)


def test_a_while_over_rounds_asks_for_a_mode():
    @fad.program
    def fn(w, d):
        def body(carry):
            n, w = carry
            return n + 1, w * jnp.tanh(fad.mean(fad.map(lambda x: jnp.sum(w * x), d)))

        return jnp.sum(jax.lax.while_loop(lambda c: c[0] < 2, body, (0, w))[1])

    with pytest.raises(fad.PlanError, match="Or name a mode without constraints"):
        fad.grad(fn)(ONE, DATA)
    got = fad.grad(fn, mode="forward")(ONE, DATA)
    np.testing.assert_allclose(got, jax.jacfwd(fn)(ONE, DATA), rtol=1e-5)


@pytest.mark.parametrize("mode", NAMED)
def test_the_gradient_has_the_arguments_dtype(mode):
    w = ONE.astype(jnp.bfloat16)

    def fn(w, d):
        return both_rounds(w.astype(jnp.float32), d)

    assert fad.grad(fn, mode=mode)(w, DATA).dtype == jnp.bfloat16


@pytest.mark.parametrize("mode", NAMED)
def test_nothing_to_differentiate(mode):
    def fn(params, w, d):
        return both_rounds(w, d)

    assert fad.grad(fn, mode=mode)({}, ONE, DATA) == {}
    assert fad.grad(fn, (), mode=mode)({}, ONE, DATA) == ()


def test_argnums_of_numpy_and_twice():
    zero: Any = np.int64(0)
    got = fad.grad(both_rounds, zero)(ONE, DATA)
    np.testing.assert_allclose(got, jax.grad(both_rounds)(ONE, DATA), rtol=1e-5)
    with pytest.raises(fad.FadError, match=r"argnums=\(0, 0\) names an argument twice"):
        fad.grad(both_rounds, (0, 0))(ONE, DATA)


def test_complex_arguments_are_refused():
    with pytest.raises(fad.FadError, match=r"is complex64\[2\]; expected real numbers"):
        fad.grad(both_rounds)(ONE.astype(jnp.complex64), DATA)


def test_closed_over_data_comes_back_too():
    direct = fad.plan(both_rounds)(ONE, DATA).cost()
    closed = fad.plan(lambda w: both_rounds(w, DATA))(ONE).cost()
    assert closed == direct
    assert closed.same_cohort
