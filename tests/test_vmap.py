"""Batching: ``vmap`` of a program is the stack of programs."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import jaxprs, masks, rounds
from tests.subjects import SUBJECTS, assert_same, gather, over

BATCH = 3
BATCHED = [s for s in SUBJECTS if s.tree == "nested" and s.dtype != "bfloat16"]


def _stack(trees):
    return jax.tree.map(lambda *v: jnp.stack(v), *trees)


@over(BATCHED)
def test_vmap_is_a_stack_of_programs(subject):
    with subject.precision():
        calls = [subject.args(seed=seed) for seed in range(0, 30, 10)]
        expected = _stack([subject.marked(*args) for args in calls])
        actual = jax.jit(jax.vmap(subject.program))(*_stack(calls))
        assert_same(actual, gather(expected))


@over([s for s in BATCHED if s.num_args == 2])
@pytest.mark.parametrize("argnum", [0, 1])
def test_vmap_over_one_of_two_arguments(subject, argnum):
    with subject.precision():
        fixed = list(subject.args())
        axes: list[int | None] = [None, None]
        axes[argnum] = 0
        calls = [subject.args(seed=seed)[argnum] for seed in range(0, 30, 10)]

        def expect(arg):
            return subject.marked(*fixed[:argnum], arg, *fixed[argnum + 1 :])

        args = list(fixed)
        args[argnum] = _stack(calls)
        actual = jax.jit(jax.vmap(subject.program, axes))(*args)
        assert_same(actual, _stack([expect(arg) for arg in calls]))


@pytest.mark.parametrize("in_axis", [0, 1, 2, -1])
@pytest.mark.parametrize("out_axis", [0, 1, -1])
def test_any_batch_axis(in_axis, out_axis):
    data = jnp.arange(4.0 * 2 * 3).reshape(4, 2, 3)

    @fad.program
    def program(c):
        return fad.sum(fad.map(jnp.sin, c))

    unmarked = lambda x: program(fad.AtClients(x))  # noqa: E731
    actual = jax.vmap(unmarked, in_axis, out_axis)(data)
    expected = jax.vmap(lambda x: jnp.sin(x).sum(0), in_axis, out_axis)(data)
    assert_same(actual, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_any_batch_axis_of_a_broadcast(axis):
    x = jnp.arange(6.0).reshape(2, 3)
    sent = fad.program(lambda v: fad.broadcast(v).unsafe_gather(), clients=4)
    expected = jax.vmap(lambda v: jnp.broadcast_to(v, (4, *v.shape)), axis, 1)(x)
    assert_same(jax.vmap(sent, axis, 1)(x), expected)


@pytest.mark.usefixtures("x64")
def test_a_grid_of_hyperparameters():
    args = rounds.make_args()
    grid = jnp.array([0.1, 0.5, 1.0])

    def sweep(train):
        by = lambda s, c: train(args[0], s, c, *args[3:])  # noqa: E731
        rows = jax.vmap(jax.vmap(by, (None, 0)), (0, None))
        return jax.jit(rows)(grid, grid / 10)

    assert_same(sweep(rounds.train), sweep(rounds.plain_train))


@pytest.mark.usefixtures("x64")
def test_vmap_of_grad_and_grad_of_vmap():
    args = rounds.make_args()
    grid = jnp.array([0.1, 0.5])

    def both(train):
        by = lambda s, c: train(args[0], s, c, *args[3:])  # noqa: E731
        outer = jax.vmap(jax.grad(by, (0, 1)), (0, None))
        total = lambda s, c: jax.vmap(by, (0, None))(s, c).sum()  # noqa: E731
        return jax.jit(lambda *a: (outer(*a), jax.grad(total, (0, 1))(*a)))

    actual = both(rounds.train)(grid, args[2])
    assert_same(actual, both(rounds.plain_train)(grid, args[2]))


@pytest.mark.usefixtures("x64")
def test_stacked_client_data():
    params, server_lr, client_lr, data, weights = rounds.make_args()
    stacked = jax.tree.map(lambda v: jnp.stack([v, -v, 2 * v]), data)
    axes = (None, None, None, 0, None)
    args = (params, server_lr, client_lr, stacked, weights)
    actual = jax.jit(jax.vmap(rounds.train, axes))(*args)
    assert_same(actual, jax.jit(jax.vmap(rounds.plain_train, axes))(*args))


def test_an_output_that_no_batched_input_reaches_is_not_batched():
    @fad.program
    def program(scale, data):
        work = lambda s, d: (s * d, jnp.sin(d))  # noqa: E731
        return tuple(fad.map(work, fad.broadcast(scale), data))

    data = fad.AtClients(jnp.ones((4, 5)))
    batched = jax.vmap(program, (0, None), (0, None))
    (work,) = jaxprs.maps(lambda s: batched(s, data), jnp.ones(BATCH))
    assert [v.aval.shape for v in work.outvars] == [(4, BATCH, 5), (4, 5)]
    (body,) = [e for e in work.params["jaxpr"].eqns if e.primitive.name == "sin"]
    assert body.outvars[0].aval.shape == (5,)


def test_unbatched_rounds_run_once():
    data = fad.AtClients(jnp.ones((4, 5)))

    @fad.program
    def program(scale, data):
        return scale * fad.sum(fad.map(jnp.sin, data))

    batched = jax.vmap(program, (0, None))
    found = jaxprs.equations(jaxprs.trace(batched, jnp.ones(BATCH), data))
    wire = [e for e in found if e.primitive.name in jaxprs.WIRE]
    assert [e.outvars[0].aval.shape for e in wire] == [(4, 5), (5,)]


@pytest.mark.parametrize("axis", [1, -1])
def test_any_batch_axis_of_select_and_deselect(axis):
    x, y = jnp.arange(6.0).reshape(3, 2), jnp.arange(16.0).reshape(4, 2, 2)
    keys = fad.AtClients(masks.ROWS)
    sent = fad.program(lambda v: fad.select(v, keys).unsafe_gather(), clients=4)
    back = fad.program(
        lambda v: fad.deselect(fad.AtClients(v), keys, jnp.zeros((3,)), wire=()),
        clients=4,
    )

    def by_hand(fn, v):
        return jnp.stack([fn(jnp.take(v, i, axis)) for i in range(2)], axis)

    actual = jax.jit(jax.vmap(sent, axis, axis))(x)
    assert_same(actual, by_hand(sent, x))
    assert_same(jax.jit(jax.vmap(back, axis, axis))(y), by_hand(back, y))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axes", [(None, None, 0), (0, 0, 1)])
def test_keys_have_a_batch_axis(axes):
    keys = jnp.stack([masks.ROWS, masks.ROWS[::-1], 0 * masks.ROWS - 1])
    args = [jnp.array([0.5, -1.0, 2.0]), masks.DATA.astype(float)]
    args = [
        v if a is None else jnp.stack([v, 2 * v, -v])
        for v, a in zip(args, axes, strict=False)
    ]
    keys = jnp.moveaxis(keys, 0, axes[2])

    def both(one_round):
        total = lambda w, d, k: jnp.sum(one_round(w, d, k) ** 2)  # noqa: E731
        return jax.jit(jax.vmap(jax.value_and_grad(total, (0, 1)), axes))

    marked = args[0], fad.AtClients(args[1]), fad.AtClients(keys)
    plain = both(masks.plain_slice_round)(args[0], args[1], keys)
    assert_same(both(masks.slice_round)(*marked), plain)
