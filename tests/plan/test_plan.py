"""Rounds, wires and state of programs and of their derivatives."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests.plan.programs import (
    F32,
    SIZE,
    clients,
    counts,
    floats,
    mean_loss,
    one_round,
    rounds_of,
    same_data,
    wires,
)


def three_rounds(lr, w, data):
    """DrJAX's measured example: three rounds, the loss at the server."""
    for _ in range(3):
        w = w - lr * (w - one_round(w, data))
    return jnp.sum(w**2)


def two_rounds_and_a_loss(lr, w, data):
    """The same count, with the loss at the clients."""
    for _ in range(2):
        w = w - lr * (w - one_round(w, data))
    return mean_loss(w, data)


def _jvp(f):
    return lambda lr, *rest: jax.jvp(lambda v: f(v, *rest), (lr,), (1.0,))


@pytest.mark.parametrize(
    ("derive", "drjax", "rounds", "mean_loss_counts"),
    [
        (lambda f: f, (3, 3), 3, (3, 3)),
        (_jvp, (5, 5), 3, (5, 5)),
        (jax.grad, (5, 5), 5, (5, 4)),
        (lambda f: jax.grad(f, (0, 1)), (6, 6), 6, (6, 5)),
        (lambda f: _jvp(jax.grad(f)), (9, 9), 5, (8, 7)),
    ],
    ids=["value", "jvp", "grad", "grad of both", "jvp of grad"],
)
def test_three_rounds_send_no_more_than_drjax(derive, drjax, rounds, mean_loss_counts):
    args = floats(), floats(SIZE), clients()
    plan = fad.plan(derive(three_rounds))(*args)
    assert counts(plan) == drjax
    assert plan.cost().rounds == rounds
    # A mean loss's cotangent is known beforehand: its backward pass shares its round.
    plan = fad.plan(derive(two_rounds_and_a_loss))(*args)
    assert counts(plan) == mean_loss_counts
    assert plan.cost().rounds == max(rounds - 1, 3)


def test_independent_sums_share_a_round():
    @fad.program
    def program(a, b, data):
        first = fad.sum(fad.map(lambda x: a * x, data))
        second = fad.sum(fad.map(lambda x: b * x, data))
        return first + second

    assert wires(program, floats(SIZE), floats(), clients()) == [
        (["f32[40]", "f32[]"], ["f32[40]", "f32[40]"])
    ]


def test_a_broadcast_waits_for_its_map():
    """What is known early goes with the round that uses it."""

    @fad.program
    def program(w, early, data):
        new = fad.mean(fad.map(lambda x: w * x, data))
        sent = fad.broadcast(early)
        return fad.sum(fad.map(lambda x, e: jnp.vdot(new, x) * e, data, sent))

    args = floats(SIZE), floats(), clients()
    assert wires(program, *args) == [
        (["f32[40]"], ["f32[40]"]),
        (["f32[40]", "f32[]"], ["f32[]"]),
    ]


def test_a_value_that_two_maps_of_a_round_use_is_sent_once():
    @fad.program
    def program(w, data):
        a = fad.sum(fad.map(lambda x: w * x, data))
        b = fad.sum(fad.map(lambda v, x: v + x, fad.broadcast(w), data))
        return a + b

    assert wires(program, floats(SIZE), clients()) == [
        (["f32[40]"], ["f32[40]", "f32[40]"])
    ]


def test_a_value_that_two_rounds_send_is_sent_twice():
    @fad.program
    def program(w, data):
        a = fad.sum(fad.map(lambda x: w * x, data))
        return fad.sum(fad.map(lambda x: w * jnp.vdot(a, x), data))

    down = [sorted(d) for d, _ in wires(program, floats(SIZE), clients())]
    assert down == [["f32[40]"], ["f32[40]", "f32[40]"]]


def test_what_no_output_needs_is_not_counted():
    @fad.program
    def program(w, unused, data):
        fad.sum(fad.map(lambda x: unused * x, data))
        fad.broadcast(unused)
        half, double = fad.map(lambda x: (w * x / 2, 2 * w * x), data).unsafe_gather()
        del half
        return fad.sum(fad.AtClients(double))

    args = floats(SIZE), floats(SIZE), clients()
    (r,) = rounds_of(program, *args)
    assert ([w.text for w in r.down], [w.text for w in r.up]) == (
        ["f32[40]"],
        ["f32[40]"],
    )
    assert r.flops == 2 * SIZE  # not those of the output that is dropped


def test_a_map_of_own_data_happens_in_the_round_that_uses_it():
    @fad.program
    def program(w, data):
        norm = fad.map(jnp.linalg.norm, data)
        first = fad.mean(fad.map(lambda x: w * x, data))
        return fad.sum(fad.map(lambda x, n: jnp.vdot(first, x) / n, data, norm))

    first, second = rounds_of(program, floats(SIZE), clients())
    assert [w.name for w in first.work] == ["<lambda>"]
    assert [w.name for w in second.work] == ["norm", "<lambda>"]
    assert first.state_bytes == 0


def test_client_outputs_stay_and_cost_no_bytes():
    @fad.program
    def program(w, data):
        return fad.map(lambda x: w * x, data)

    (r,) = rounds_of(program, floats(SIZE), clients())
    assert (r.bytes_down, r.bytes_up, len(r.work)) == (F32 * SIZE, 0, 1)


def fresh_cohorts(w, cohorts):
    return jax.lax.scan(lambda w, c: (one_round(w, c), None), w, cohorts)[0]


@pytest.mark.parametrize(
    ("program", "data", "returns"),
    [
        (same_data, clients(), [False, True, True]),
        (fresh_cohorts, clients(3), [False, False, False]),
    ],
)
def test_a_cohort_comes_back_where_its_data_do(program, data, returns):
    forward = lambda w, d: jax.jvp(lambda v: program(v, d), (w,), (w,))  # noqa: E731
    for fn in (program, forward):
        plan = fad.plan(fn)(floats(SIZE), data)
        assert [r.returns for r in plan.rounds] == returns
        assert plan.cost().same_cohort == any(returns)
        assert plan.cost().client_state_bytes == 0


@pytest.mark.parametrize(
    ("program", "data", "returns"),
    [(same_data, clients(), True), (fresh_cohorts, clients(3), False)],
)
def test_reverse_mode_keeps_and_returns(program, data, returns):
    plan = fad.plan(jax.grad(lambda *a: jnp.sum(program(*a) ** 2)))(floats(SIZE), data)
    assert [r.returns for r in plan.rounds] == [False, returns, returns, *[True] * 3]
    kept = [r.state_bytes for r in plan.rounds]
    assert kept == [F32 * SIZE * n for n in (1, 2, 3, 2, 1, 0)]


def test_a_client_value_that_is_carried_is_state():
    @fad.program
    def program(w, data):
        def body(carry, _):
            w, own = carry
            own = fad.map(lambda o, x: jnp.sin(w) * o + x, own, data)
            return (w + fad.mean(own), own), None

        return jax.lax.scan(body, (w, data), length=3)[0]

    plan = fad.plan(program)(floats(SIZE), clients())
    kept = [r.state_bytes for r in plan.rounds]
    assert kept == [F32 * SIZE, F32 * SIZE, 0]  # what is returned is kept no longer
    assert plan.cost().same_cohort
