"""Batching: ``vmap`` of a program is the stack of programs."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import jaxprs, rounds
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
