"""Operations counted against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

import fad
from fad.plan._flops import count_flops
from tests.plan.programs import CLIENTS, SIZE, clients, floats

M, K, N = 3, 5, 7


def flops(fn, *shapes):
    return count_flops(jax.make_jaxpr(fn)(*(floats(*s) for s in shapes)).jaxpr)


def _conv(strides, padding, groups=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return lambda x, k: jax.lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=dims, feature_group_count=groups
    )


def _times(x, n):
    return jax.lax.scan(lambda c, _: (c * 2 + 1, None), x, length=n)[0]


@pytest.mark.parametrize(
    ("fn", "shapes", "expected"),
    [
        (jnp.matmul, [(M, K), (K, N)], 2 * M * K * N),
        (jnp.matmul, [(4, M, K), (4, K, N)], 4 * 2 * M * K * N),
        (jnp.vdot, [(K,), (K,)], 2 * K),
        (jnp.add, [(M, N), (M, N)], M * N),
        (lambda x: jnp.tanh(x) * x, [(M,)], 2 * M),
        (jnp.sum, [(M, N)], M * N),
        (lambda x: jnp.max(x, axis=0), [(M, N)], M * N),
        (jnp.cumsum, [(N,)], N),
        # Kernels of 3 x 3 x 2 numbers; 8 x 8 outputs, or 4 x 4, in 6 channels.
        (_conv((1, 1), "SAME"), [(1, 8, 8, 2), (3, 3, 2, 6)], 2 * 64 * 6 * 18),
        (_conv((2, 2), "SAME"), [(4, 8, 8, 2), (3, 3, 2, 6)], 4 * 2 * 16 * 6 * 18),
        (_conv((1, 1), "VALID", 2), [(1, 8, 8, 4), (3, 3, 2, 6)], 2 * 36 * 6 * 18),
        (lambda x: _times(x, 10), [(M,)], 10 * 2 * M),
        (lambda x: jax.jit(_times, static_argnums=1)(x, 10), [(M,)], 10 * 2 * M),
        (lambda x: jax.lax.cond(True, jnp.sin, lambda v: 2 * v + v, x), [(M,)], 2 * M),
        (lambda x: x.at[jnp.array([0, 2])].add(1.0), [(N,)], 2),
        (lambda x: x.at[jnp.array([0, 2])].set(1.0), [(N,)], 0),
        (lambda x: jnp.argmax(x + 1) + 1, [(M,)], M),
        # Moving data is free, and so are integers.
        (lambda x: jnp.arange(9) * 3 + x.astype(int).sum(), [(M,)], 0),
        (lambda x: x.T.reshape(-1)[::-1], [(M, N)], 0),
        (lambda x: jnp.concatenate([x, x])[1:], [(M,)], 0),
        (lambda x: checkpoint_name(x.astype(jnp.bfloat16), "x"), [(M,)], 0),
    ],
)
def test_by_hand(fn, shapes, expected):
    assert flops(fn, *shapes) == expected


def test_a_while_counts_once():
    def fn(x):
        return jax.lax.while_loop(lambda v: v[0] < 9, lambda v: v + v * 2, x)

    assert flops(fn, (M,)) == 2 * M


def test_a_gradient_by_hand():
    """Two products forward; back, one for each of w's uses and one for the hidden."""
    rows, width = 8, 32

    def loss(w, x):
        return jnp.sum((x @ w) @ w)

    product, size = 2 * rows * width * width, width * width
    shapes = (width, width), (rows, width)
    value = 2 * product + rows * width
    assert flops(loss, *shapes) == value
    # Adding up the cotangents of w's two uses is the rest.
    assert flops(jax.value_and_grad(loss), *shapes) == value + 3 * product + size


def test_a_round_counts_one_client():
    @fad.program
    def program(w, data):
        return fad.mean(fad.map(lambda x: w * jnp.vdot(w, x), data))

    cost = fad.plan(program)(floats(SIZE), clients()).cost()
    assert cost.client_flops == 2 * SIZE + SIZE


def test_a_program_inside_a_map_is_not_a_clients_own():
    """A map in a jaxpr that is counted as a whole counts all its clients."""

    @fad.program
    def program(data):
        return fad.map(lambda x: 2 * x, data)

    jaxpr = jax.make_jaxpr(program)(clients()).jaxpr
    assert count_flops(jaxpr) == CLIENTS * SIZE


def test_a_scan_over_rounds_counts_each():
    @fad.program
    def one_round(w, data):
        return fad.mean(fad.map(lambda x: w * x, data))

    def program(w, data):
        return jax.lax.scan(lambda w, _: (one_round(w, data), None), w, length=6)[0]

    cost = fad.plan(program)(floats(SIZE), clients()).cost()
    assert cost.client_flops == 6 * SIZE
