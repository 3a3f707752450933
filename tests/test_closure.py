"""FAD's closure: a derivative of a federated program is a federated program again."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import jaxprs, masks, rounds
from tests.jaxprs import CLIENT, SERVER, check_closed, wire

ARGS = rounds.make_args()
LR = 1  # the position of the server's learning rate


@fad.program
def linear_round(w, data):
    """One tensor down, one up."""
    local = fad.map(lambda p, d: jnp.sin(p * d), fad.broadcast(w), data)
    return jnp.sum(fad.mean(local) ** 2)


def slice_round(w, data, keys):
    """One tensor's rows down, other rows up, and how many clients have them."""
    return jnp.sum(masks.slice_round(w, data, keys) ** 2)


SMALL = jnp.ones(3), fad.AtClients(jnp.ones((4, 3)))
SLICES = jnp.ones(3), fad.AtClients(masks.DATA), fad.AtClients(masks.ROWS)
TRANSFORMS = {
    "value": lambda f: f,
    "jvp": lambda f: lambda *a: jax.jvp(f, a, a),
    "grad": lambda f: jax.grad(f, (0, 1)),
    "vjp": lambda f: lambda *a: jax.vjp(f, *a)[1](1.0),
    "linearize": lambda f: lambda *a: jax.linearize(f, *a)[1](*a),
    "grad_of_jit": lambda f: jax.grad(jax.jit(f), (0, 1)),
    "jit_of_grad": lambda f: jax.jit(jax.grad(f, (0, 1))),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    "fwd_over_rev": lambda f: lambda *a: jax.jvp(jax.grad(f, (0, 1)), a, a),
    "rev_over_fwd": lambda f: jax.grad(lambda *a: jax.jvp(f, a, a)[1], (0, 1)),
    "rev_over_rev": lambda f: jax.grad(lambda *a: jnp.sum(jax.grad(f)(*a)), (0, 1)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_a_round_are_closed(name):
    check_closed(TRANSFORMS[name](linear_round), *SMALL)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_a_round_on_slices_are_closed(name):
    def transformed(w, data, keys):
        one_round = lambda w, data: slice_round(w, data, keys)  # noqa: E731
        return TRANSFORMS[name](one_round)(w, data)

    check_closed(transformed, *SLICES)


@pytest.mark.parametrize("name", ["value", "jvp", "grad", "checkpoint", "fwd_over_rev"])
def test_transforms_of_training_are_closed(name):
    check_closed(TRANSFORMS[name](rounds.train), *ARGS)


def test_gradients_stand_where_their_arguments_do():
    placements = check_closed(jax.grad(rounds.train, rounds.ALL), *ARGS)
    expected = [SERVER] * 4 + [CLIENT] * 3  # params w and b, lrs; data x and y, weights
    assert placements == expected


# Numbers of broadcasts, maps and sums.
COUNTS = {
    "value": (1, 1, 1),
    "jvp": (2, 2, 2),
    "grad": (2, 2, 2),
    "vjp": (2, 2, 2),
    "grad_of_jit": (2, 2, 2),
    "jit_of_grad": (2, 2, 2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_communication_of_one_round(name):
    assert wire(TRANSFORMS[name](linear_round), *SMALL) == COUNTS[name]


def test_communication_of_a_round_on_slices():
    names = jaxprs.SLICES + jaxprs.WIRE
    gradient = TRANSFORMS["grad"](slice_round)
    assert jaxprs.count(names, slice_round, *SLICES) == (1, 2, 0, 2, 0)
    # Both slices and weights are made at the clients; weights have no derivative.
    assert jaxprs.count(jaxprs.SLICES, gradient, *SLICES) == (2, 3)
    assert jaxprs.count(("fad_broadcast", "fad_sum"), gradient, *SLICES) == (0, 0)


def test_keys_are_client_values():
    gradient = jax.grad(slice_round, (0, 1))
    assert check_closed(gradient, *SLICES) == [SERVER, CLIENT]
    with pytest.raises(AssertionError, match="server values are keys"):
        check_closed(slice_round, *SLICES[:2], masks.ROWS)


def test_the_gradient_by_a_client_value_alone_needs_no_second_sum():
    assert wire(jax.grad(linear_round, 1), *SMALL) == (2, 2, 1)


def test_the_jvp_by_a_client_value_alone_sends_nothing_more():
    def tangent(w, data):
        return jax.jvp(lambda d: linear_round(w, d), (data,), (data,))

    assert wire(tangent, *SMALL) == (1, 2, 2)


def test_the_gradient_by_a_server_step_is_server_work():
    def by_lr(w, lr, data):
        return w + lr * fad.program(
            lambda p, d: fad.mean(fad.map(jnp.multiply, fad.broadcast(p), d))
        )(w, data)

    gradient = jax.grad(lambda lr, *a: jnp.sum(by_lr(a[0], lr, a[1])))
    assert wire(gradient, jnp.ones(()), *SMALL) == (1, 1, 1)


def test_a_mean_loss_needs_one_round_for_its_gradient():
    @fad.program
    def mean_loss(w, data):
        return fad.mean(
            fad.map(lambda p, d: jnp.sum((p - d) ** 2), fad.broadcast(w), data)
        )

    # The cotangent of a mean is 1/n: nothing but the params goes down and comes up.
    assert wire(mean_loss, *SMALL) == (1, 1, 1)
    broadcasts, maps, sums = wire(jax.grad(mean_loss), *SMALL)
    assert (maps, sums) == (2, 1)
    assert broadcasts == 2  # one of them the scalar 1/n


MEANS = {
    "sum": (fad.sum, (1, 0, 0)),
    "mean": (fad.mean, (1, 0, 0)),
}


@pytest.mark.parametrize("name", MEANS)
def test_the_gradient_of_a_linear_aggregate_is_a_broadcast(name):
    fn, expected = MEANS[name]
    total = lambda d: jnp.sum(fad.program(fn)(d))  # noqa: E731
    assert wire(jax.grad(total), SMALL[1]) == expected
    assert check_closed(jax.grad(total), SMALL[1]) == [CLIENT]


def test_the_gradient_of_a_weighted_mean():
    weights = fad.AtClients(jnp.arange(1.0, 5.0))
    total = lambda d, w: jnp.sum(fad.program(fad.weighted_mean)(d, w))  # noqa: E731
    assert wire(total, SMALL[1], weights) == (
        0,
        1,
        2,
    )  # the weighted sum and the weights'
    assert wire(jax.grad(total, (0, 1)), SMALL[1], weights) == (2, 2, 2)
    assert wire(jax.grad(total), SMALL[1], weights)[2] == 1
    assert check_closed(jax.grad(total, (0, 1)), SMALL[1], weights) == [CLIENT] * 2


def test_closed_over_values_are_sent():
    def program(w, data):
        return fad.program(lambda d: fad.sum(fad.map(lambda v: v * w, d)))(data)

    assert wire(program, *SMALL) == (1, 1, 1)
    check_closed(program, *SMALL)
    assert check_closed(jax.grad(lambda *a: jnp.sum(program(*a))), *SMALL) == [SERVER]


def test_closed_over_values_that_are_not_used_are_not_sent():
    def program(w, data):
        def work(v):
            _ = jnp.sin(w)
            return v

        return fad.program(lambda d: fad.sum(fad.map(work, d)))(data)

    assert wire(program, *SMALL) == (0, 1, 1)


def test_a_value_closed_over_twice_is_sent_once():
    def program(w, data):
        return fad.program(lambda d: fad.sum(fad.map(lambda v: v * w + w, d)))(data)

    assert wire(program, *SMALL) == (1, 1, 1)


def test_dead_outputs_of_a_map_are_dropped():
    @fad.program
    def program(w, data):
        def work(p, d):
            return {"used": p * d, "dead": jnp.sin(p)}

        return fad.sum(fad.map(work, fad.broadcast(w), data)["used"])

    (work,) = jaxprs.maps(program, *SMALL)
    assert len(work.outvars) == 1
    assert [e.primitive.name for e in work.params["jaxpr"].eqns] == ["mul"]
    assert "sine" not in jax.jit(program).lower(*SMALL).as_text()


def test_dead_inputs_of_a_map_are_dropped():
    @fad.program
    def program(w, data):
        return fad.sum(fad.map(lambda p, d: d, fad.broadcast(w), data))

    assert wire(program, *SMALL) == (0, 1, 1)


def test_a_dead_map_is_dropped():
    @fad.program
    def program(w, data):
        fad.sum(fad.map(jnp.sin, data))
        return 2 * w

    assert wire(program, *SMALL) == (0, 0, 0)


def test_effects_at_the_clients_are_kept(capfd):
    @jax.jit
    @fad.program
    def program(data):
        fad.map(lambda v: jax.debug.print("client {}", v), data)
        return 1.0

    program(fad.AtClients(jnp.arange(2)))
    jax.effects_barrier()
    assert sorted(capfd.readouterr().out.split("\n"))[1:] == ["client 0", "client 1"]


def test_the_primal_of_a_gradient_is_dead_where_it_is_linear():
    @fad.program
    def program(w, data):
        return fad.sum(fad.map(jnp.vdot, fad.broadcast(w), data))

    assert wire(jax.grad(program), *SMALL) == (1, 1, 1)
    assert wire(jax.value_and_grad(program), *SMALL) == (2, 2, 2)


def test_a_leak_is_found():
    def leak(w, data):
        return w * data.unsafe_gather().sum()

    with pytest.raises(AssertionError, match="acts on a client value"):
        check_closed(leak, *SMALL)
