"""``fad.sum(x, wire=...)``: the code that travels is counted and shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fad

DATA = fad.AtClients(jnp.arange(20.0).reshape(4, 5) - 7)
CODE = (
    jax.ShapeDtypeStruct((2,), jnp.float32),
    jax.ShapeDtypeStruct((2,), jnp.int32),
)


def two_largest(x):
    """One client's vector with all but two numbers set to zero."""
    _, places = jax.lax.top_k(jnp.abs(x), 2)
    return jnp.zeros_like(x).at[places].set(x[places])


def program(wire):
    @fad.program
    def total(w, data):
        return fad.sum(fad.map(lambda x: two_largest(w * x), data), wire=wire).sum()

    return total


def plainly(w, data):
    return jax.vmap(lambda x: two_largest(w * x))(data.unsafe_gather()).sum()


@pytest.mark.once
def test_values_and_derivatives_are_those_of_the_sum():
    coded, dense = program(CODE), program(None)
    for wrap in (jax.jit, fad.jit, lambda f: fad.jit(jax.grad(f))):
        np.testing.assert_array_equal(wrap(coded)(2.0, DATA), wrap(dense)(2.0, DATA))
    for wrap in (lambda f: f, jax.grad):
        np.testing.assert_allclose(wrap(coded)(2.0, DATA), wrap(plainly)(2.0, DATA))
    check_grads(lambda w: coded(w, DATA), (2.0,), order=1, eps=0.1)
    got = jax.vmap(coded, (0, None))(jnp.array([1.0, 2.0]), DATA)
    np.testing.assert_allclose(got, [coded(1.0, DATA), coded(2.0, DATA)])
    mode = fad.grad(coded, argnums=0, mode="forward")(2.0, DATA)
    np.testing.assert_allclose(mode, jax.grad(coded)(2.0, DATA))


def ups(fn, *args):
    return [[w.text for w in r.up] for r in fad.plan(fn)(*args).rounds]


def test_the_code_is_counted_and_tangents_are_not_coded():
    coded = program(CODE)
    assert ups(coded, 2.0, DATA) == [["f32[2]", "i32[2]"]]
    assert fad.plan(coded)(2.0, DATA).cost().bytes_up == 16
    assert ups(jax.grad(coded), 2.0, DATA) == [["f32[]"]]
    both = lambda w, d: jax.jvp(lambda v: coded(v, d), (w,), (1.0,))  # noqa: E731
    assert ups(both, 2.0, DATA) == [["f32[2]", "i32[2]", "f32[5]"]]
    many = jax.vmap(coded, (0, None))
    assert ups(many, jnp.ones(3), DATA) == [["f32[3,2]", "i32[3,2]"]]


def test_a_code_for_each_leaf():
    small = jax.ShapeDtypeStruct((1,), jnp.uint8)

    @fad.program
    def total(data):
        return fad.sum(data, wire={"a": small, "b": (small, small)})

    data = fad.AtClients({"a": jnp.ones((3, 4)), "b": jnp.ones((3, 2))})
    assert total(data)["b"].tolist() == [3.0, 3.0]
    assert ups(total, data) == [["u8[1]"] * 3]


def test_the_check_shows_that_codes_are_decoded_one_by_one():
    coded = program(CODE)
    message = (
        r"fad.check\(total\): the server decodes what each client sends, f32\[2\], "
        r"i32\[2\], before it can sum.*\n  value: float32\[4,5\].*\n  at: .*\n"
        r".*Sum codes that add up.*allow='decode'"
    )
    with pytest.raises(fad.PlacementError, match=message):
        fad.check(coded)(2.0, DATA)
    report = fad.check(coded, allow="decode")(2.0, DATA)
    (allowed,) = report.allowed
    assert (allowed.kind, allowed.type) == ("decode", "f32[2], i32[2]")
    assert report.outputs[0].exposes == (allowed,)
    # What the derivative sends is not coded, so it is a sum like any other.
    assert not fad.check(jax.grad(coded))(2.0, DATA).allowed


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({"b": CODE}, "wire does not have the structure of x"),
        ({"a": 16}, r"wire for x\['a'\] is 16; expected jax.ShapeDtypeStruct"),
        ({"a": ()}, r"wire for x\['a'\] is \(\); expected jax.ShapeDtypeStruct"),
    ],
)
def test_errors(wire, message):
    total = fad.program(lambda x: fad.sum(x, wire=wire))
    with pytest.raises(fad.FadError, match=r"fad.sum\(x\): " + message):
        total(fad.AtClients({"a": jnp.ones((2, 3))}))
