"""Compilation: traced once, nested anywhere, and never a stale trace."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import masks, rounds
from tests.subjects import assert_same


class Traced:
    """A function that counts how often it is traced or run."""

    def __init__(self, fn):
        self.fn, self.count = fn, 0
        functools.update_wrapper(self, fn)

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.fn(*args, **kwargs)


def _clients(n):
    return fad.AtClients(jnp.arange(float(n)))


def _compiled(fn: Any) -> int:
    """The number of programs that a jitted function has compiled."""
    return fn._cache_size()


def test_the_second_round_compiles_nothing():
    args = rounds.make_args()
    params, rest = args[0], args[1:]
    body = Traced(rounds.fl_round)
    step = jax.jit(body)
    state = params, jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):
        state = step(*state, *rest)
    assert body.count == 1
    assert _compiled(step) == 1


def test_the_second_gradient_compiles_nothing():
    args = rounds.make_args()
    body = Traced(rounds.train)
    gradient = jax.jit(jax.grad(body, rounds.ALL))
    for _ in range(3):
        grads = gradient(*args)
        args = jax.tree.map(lambda a, g: a - 0.01 * g, args, grads)
    assert body.count == 1
    assert _compiled(gradient) == 1


def test_other_keys_compile_nothing():
    body = Traced(masks.slice_round)
    step, data = jax.jit(body), fad.AtClients(masks.DATA)
    w = jnp.array([0.5, -1.0, 2.0])
    for keys in (masks.ROWS, masks.ROWS[::-1]):
        out = step(w, data, fad.AtClients(keys))
        assert_same(out, masks.plain_slice_round(w, masks.DATA, keys))
    assert body.count == 1


def test_other_data_of_the_same_shape_compiles_nothing():
    total = jax.jit(Traced(fad.program(fad.sum)))
    assert [total(_clients(3)).item(), total(fad.AtClients(jnp.ones(3))).item()] == [
        3,
        3,
    ]
    assert _compiled(total) == 1


def test_another_number_of_clients_is_another_program():
    body = Traced(fad.program(lambda d: fad.sum(fad.broadcast(1.0)) + fad.mean(d)))
    total = jax.jit(body)
    assert [total(_clients(n)).item() for n in (3, 5, 3)] == [4, 7, 4]
    assert body.count == 2


def test_a_jitted_helper_is_traced_for_each_number_of_clients():
    helper = jax.jit(lambda x: fad.sum(fad.broadcast(x)))
    for n in (2, 5, 2, 7):
        assert fad.program(helper, clients=n)(1.0) == n
        assert jax.jit(fad.program(helper, clients=n))(1.0) == n
        assert jax.grad(fad.program(helper, clients=n))(1.0) == n


@pytest.mark.parametrize(
    "wrap", [jax.checkpoint, jax.jit, jax.vmap], ids=lambda f: f.__name__
)
def test_cached_traces_know_the_number_of_clients(wrap):
    helper = wrap(lambda x: fad.sum(fad.broadcast(x)))
    for n in (2, 5, 2):
        program = jax.jit(fad.program(lambda x: helper(x).sum(), clients=n))
        assert program(jnp.ones(1)) == n
        assert_same(jax.grad(program)(jnp.ones(1)), jnp.full(1, float(n)))


def test_control_flow_traces_know_the_number_of_clients():
    body = lambda c, _: (fad.mean(fad.broadcast(c)) + fad.sum(fad.broadcast(1.0)), None)  # noqa: E731
    for n in (2, 5, 2):
        run = fad.program(lambda x: jax.lax.scan(body, x, None, length=2)[0], clients=n)
        assert run(jnp.zeros(())) == 2 * n


def test_a_helper_jitted_outside_is_refused_outside():
    helper = jax.jit(lambda x: fad.sum(fad.broadcast(x)))
    assert fad.program(helper, clients=3)(1.0) == 3
    with pytest.raises(fad.PlacementError, match="outside a fad program"):
        helper(1.0)


def test_a_helper_traced_in_a_program_is_refused_at_a_client():
    helper = jax.jit(lambda x: fad.sum(fad.broadcast(x)))
    program = fad.program(lambda d: helper(1.0) + fad.sum(fad.map(helper, d)))
    with pytest.raises(fad.PlacementError, match="outside a fad program"):
        program(_clients(3))


def test_nested_jit():
    inner = jax.jit(lambda d: fad.map(jax.jit(jnp.sin), d))
    outer = jax.jit(fad.program(jax.jit(lambda d: jax.jit(fad.sum)(inner(d)))))
    assert_same(outer(_clients(4)), jnp.sin(jnp.arange(4.0)).sum())
    assert_same(jax.jit(jax.grad(outer))(_clients(4)), jnp.cos(jnp.arange(4.0)))


def test_a_jitted_program_calls_a_jitted_program():
    square = jax.jit(fad.program(lambda d: fad.sum(fad.map(jnp.square, d))))
    outer = jax.jit(fad.program(lambda d: square(d) + fad.sum(d)))
    assert outer(_clients(4)) == 20
    assert_same(jax.grad(outer)(_clients(4)), 2 * jnp.arange(4.0) + 1)


def test_donated_arguments():
    state = jnp.ones((4, 2))
    step = jax.jit(fad.program(lambda s: fad.map(lambda v: 2 * v, s)), donate_argnums=0)
    assert_same(step(fad.AtClients(state)), jnp.full((4, 2), 2.0))
    assert state.is_deleted()


def test_ahead_of_time_compilation():
    shapes = fad.AtClients(jax.ShapeDtypeStruct((4,), jnp.float32))
    compiled = jax.jit(fad.program(fad.sum)).lower(shapes).compile()
    assert compiled(_clients(4)) == 6


def test_static_arguments():
    @functools.partial(jax.jit, static_argnames="power")
    @fad.program
    def program(data, *, power):
        return fad.sum(fad.map(lambda v: v**power, data))

    assert [program(_clients(3), power=p).item() for p in (1, 2)] == [3, 5]


def test_keyword_client_values():
    program = jax.jit(fad.program(lambda *, data, scale=1.0: scale * fad.sum(data)))
    assert program(data=_clients(4)) == 6
    assert program(data=_clients(4), scale=2.0) == 12
