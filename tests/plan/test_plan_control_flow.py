"""Loops, branches and recomputation around rounds."""

import jax
import jax.numpy as jnp
import pytest

import fad
from fad.primitives import broadcast_p, sum_p
from tests.plan.programs import (
    CLIENTS,
    F32,
    SIZE,
    clients,
    counts,
    floats,
    mean_loss,
    one_round,
    rounds_of,
    same_data,
)


def _of_squares(f):
    return jax.grad(lambda w, data: jnp.sum(f(w, data) ** 2))


def _save(*primitives):
    return lambda prim, *_, **__: prim in primitives


@pytest.mark.parametrize(
    ("options", "sent", "rounds", "state"),
    [
        # Two rounds again, for the models; then the last with the backward pass.
        ({}, (9, 8), 8, 2),
        ({"policy": _save(sum_p)}, (9, 6), 6, 2),
        # The models that were sent stay at the clients.
        ({"policy": _save(sum_p, broadcast_p)},
         (6, 6), 6, 3),
    ],
    ids=["all again", "sums saved", "sums and broadcasts saved"],
)  # fmt: skip
def test_checkpoint_around_rounds_repeats_communication(options, sent, rounds, state):
    derived = _of_squares(jax.checkpoint(same_data, **options))
    plan = fad.plan(derived)(floats(SIZE), clients())
    assert counts(plan) == sent
    cost = plan.cost()
    assert cost.rounds == rounds
    assert cost.client_state_bytes == state * F32 * SIZE


def test_checkpoint_around_each_round_sends_the_model_again():
    """What the clients need anew is made in the backward round, not kept until then."""

    def program(w, data):
        body = jax.checkpoint(one_round)
        return jax.lax.scan(lambda w, _: (body(w, data), None), w, length=3)[0]

    plan = fad.plan(_of_squares(program))(floats(SIZE), clients())
    assert [len(r.down) for r in plan.rounds] == [1, 1, 1, 2, 2, 2]
    assert [len(r.up) for r in plan.rounds] == [1] * 6
    assert plan.cost().client_state_bytes == 0


def test_nested_scans_count_all_their_rounds():
    def program(w, data):
        def epoch(w, _):
            w = same_data(w, data, rounds=4)
            return jnp.tanh(w), mean_loss(w, data)

        return jax.lax.scan(epoch, w, length=5)

    cost = fad.plan(program)(floats(SIZE), clients()).cost()
    # Each epoch's loss needs what the next epoch's first round needs.
    assert cost.rounds == 5 * 4 + 1
    assert cost.bytes_up == F32 * (20 * SIZE + 5)


@pytest.mark.parametrize("inside", [False, True])
def test_a_scan_under_jit(inside):
    f = (lambda w, d: jax.jit(same_data)(2 * w, d)) if inside else jax.jit(same_data)
    args = floats(SIZE), clients()
    assert fad.plan(f)(*args).rounds == fad.plan(same_data)(*args).rounds


def test_a_reverse_scan_reads_its_inputs_backwards():
    """The value that its last iteration reads was known first."""

    def program(w, data):
        _, each = jax.lax.scan(lambda w, _: (one_round(w, data),) * 2, w, length=3)

        def back(w, early):
            new = fad.program(lambda d: fad.mean(fad.map(lambda x: early * x, d)))(data)
            return w + new, None

        return jax.lax.scan(back, w, each, reverse=True)[0]

    plan = fad.plan(program)(floats(SIZE), clients())
    # The three sums of the reverse scan wait for nothing but the forward rounds.
    assert [len(r.up) for r in plan.rounds] == [1, 2, 2, 1]


@fad.program
def a_cond(flag, w, data):
    """Two rounds of a number, or one of a model."""

    def small(w, d):
        once = fad.mean(fad.map(lambda x: x[0] * w[0], d))
        return w + fad.mean(fad.map(lambda x: x[0] * once, d))

    def large(w, d):
        return w + fad.mean(fad.map(lambda x: x * w, d))

    return jax.lax.cond(flag, small, large, w, data)


def test_a_cond_costs_its_dearest_branch():
    """First by rounds, then by bytes."""
    flag = jax.ShapeDtypeStruct((), bool)
    plan = fad.plan(a_cond)(flag, floats(SIZE), clients())
    ups = [[w.text for w in r.up] for r in plan.rounds]
    assert ups == [["f32[]"], ["f32[]"]]

    def switch(i, w, data):
        sums = [fad.sum, lambda d: fad.sum(fad.map(lambda x: x[:2], d))[0] + w]
        return jax.lax.switch(i, [fad.program(f) for f in sums], data)

    index = jax.ShapeDtypeStruct((), jnp.int32)
    plan = fad.plan(switch)(index, floats(SIZE), clients())
    assert [w.text for w in plan.rounds[0].up] == ["f32[40]"]


def test_a_cond_waits_for_its_predicate():
    def program(w, data):
        return a_cond(mean_loss(w, data) > 1, w, data)

    plan = fad.plan(program)(floats(SIZE), clients())
    assert [len(r.up) for r in plan.rounds] == [1, 1, 1]


def a_while(w, data):
    """Rounds until the model is large, which a mean over the clients tells."""

    def small(w):
        return mean_loss(w, data) < 10

    return jax.lax.while_loop(small, lambda w: one_round(w, data), w)


def test_a_while_without_a_bound_is_refused():
    message = r"a while loop holds communication, .* fad.plan\(f, while_bound=...\)"
    with pytest.raises(fad.PlanError, match=message):
        fad.plan(a_while)(floats(SIZE), clients())


@pytest.mark.parametrize("bound", [1, 4])
def test_a_while_with_a_bound(bound):
    plan = fad.plan(a_while, while_bound=bound)(floats(SIZE), clients())
    # The loop asks before each iteration, and once more to learn that it is over.
    ups = [[w.text for w in r.up] for r in plan.rounds]
    assert ups == [*[["f32[]"], ["f32[40]"]] * bound, ["f32[]"]]


def test_a_while_at_a_client_needs_no_bound():
    @fad.program
    def program(w, data):
        def work(x):
            return jax.lax.while_loop(lambda v: jnp.sum(v) < 9, lambda v: v + w, x)

        return fad.sum(fad.map(work, data))

    assert len(rounds_of(program, floats(SIZE), clients())) == 1


def test_a_while_that_a_sum_over_carried_client_values_ends():
    @fad.program
    def halve(data):
        def body(d):
            return fad.map(lambda v: v / 2, d)

        return jax.lax.while_loop(lambda d: fad.sum(d) > 1, body, data)

    plan = fad.plan(halve, while_bound=2)(fad.AtClients(floats(CLIENTS)))
    assert [len(r.up) for r in plan.rounds] == [1, 1, 1]
