"""Every mode gives the numbers of plain JAX on the same program."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.modes.programs import (
    CLIENTS,
    DIM,
    evaluate,
    one_round,
    server_step,
    training,
    weighted,
)

MODES = ("forward", "reverse", "mixed", "mixed-products", "auto")


@functools.cache  # the same numbers for every mode
def plain_gradient(make, rounds, argnums=0):
    """The value and the gradient of a program by plain JAX."""
    program = make(rounds)
    return jax.jit(jax.value_and_grad(program.plain, argnums))(*program.args)


@functools.cache
def plain_second(rounds):
    """The second derivative by the server's step by plain JAX."""
    program = server_step(rounds)
    return jax.jit(jax.grad(jax.grad(program.plain)))(*program.args)


def assert_close(got, want, tol=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rounds", "jit"), [(1, False), (3, True)])
def test_gradient_of_training(x64, mode, rounds, jit):
    program = training(rounds)
    got = fad.value_and_grad(program.fn, (0, 1), mode=mode)
    got = jax.jit(got) if jit else got
    assert_close(got(*program.args), plain_gradient(training, rounds, (0, 1)))


@pytest.mark.parametrize("remat", [False, True])  # None: everywhere else
@pytest.mark.parametrize("mode", MODES)
def test_remat_changes_no_number(x64, mode, remat):
    program = server_step(2)
    got = fad.grad(program.fn, mode=mode, remat=remat)(*program.args)
    assert_close(got, plain_gradient(server_step, 2)[1])


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
def test_gradient_by_a_client_value_comes_back_at_clients(x64, mode):
    program = weighted(4)
    got = fad.grad(program.fn, mode=mode)(*program.args)
    assert isinstance(got, fad.AtClients)
    want = jax.grad(program.plain)(*program.args)
    assert_close(got.unsafe_gather(), want.unsafe_gather())


@pytest.mark.parametrize("mode", MODES)
def test_argnums(x64, mode):
    program = training(1)
    single = fad.grad(program.fn, 1, mode=mode)(*program.args)
    swapped = fad.grad(program.fn, (1, 0), mode=mode)(*program.args)
    want = plain_gradient(training, 1, (0, 1))[1]
    assert_close(single, want[1])
    assert_close(swapped, want[::-1])


@pytest.mark.parametrize("mode", ["forward", "mixed"])
def test_argnums_of_one_and_from_the_end(x64, mode):
    program = training(1)
    (only,) = fad.grad(program.fn, (1,), mode=mode)(*program.args)
    negative = fad.grad(program.fn, -3, mode=mode)(*program.args)
    want = plain_gradient(training, 1, (0, 1))[1][1]
    assert_close(only, want)
    assert_close(negative, want)


@pytest.mark.parametrize("mode", MODES)
def test_auxiliary_output(x64, mode):
    program = training(1)

    def with_aux(*args):
        value = program.fn(*args)
        return value, {"value": value, "count": jnp.arange(3)}

    gradient, aux = fad.grad(with_aux, mode=mode, has_aux=True)(*program.args)
    (value, same), again = fad.value_and_grad(with_aux, mode=mode, has_aux=True)(
        *program.args
    )
    assert_close(gradient, plain_gradient(training, 1, (0, 1))[1][0])
    assert_close(again, gradient)
    assert_close(aux, same)
    np.testing.assert_allclose(aux["value"], value)


@pytest.mark.parametrize(
    ("mode", "argnums"),
    [*((mode, (0, 1)) for mode in MODES), ("forward", 0), ("reverse", 0)],
)
def test_jacobian(x64, mode, argnums):
    program = training(1)

    def outputs(w, h, cohorts, test):
        loss = program.fn(w, h, cohorts, test)
        return {"loss": loss, "scaled": jnp.stack([loss, loss**2])}

    def plain(w, h, cohorts, test):
        loss = program.plain(w, h, cohorts, test)
        return {"loss": loss, "scaled": jnp.stack([loss, loss**2])}

    got = fad.jacobian(outputs, argnums, mode=mode)(*program.args)
    want = jax.jit(jax.jacobian(plain, argnums))(*program.args)
    assert_close(got, want)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_jvp(x64, mode):
    program = training(2)
    w, h, *rest = program.args
    tangent = jnp.linspace(1.0, 2.0, DIM)
    got = fad.jvp(lambda w: program.fn(w, h, *rest), (w,), (tangent,), mode=mode)
    want = jax.jvp(lambda w: program.plain(w, h, *rest), (w,), (tangent,))
    assert_close(got, want)


@pytest.mark.parametrize("mode", ["forward", "reverse", "mixed"])
def test_vjp(x64, mode):
    program = training(2)
    rest = program.args[2:]

    def pair(fn):
        return lambda w, h: (jnp.sin(fn(w, h, *rest)), fn(w, h, *rest) * jnp.ones(2))

    cotangent = (jnp.asarray(0.3), jnp.array([1.0, -2.0]))
    value, pull = fad.vjp(pair(program.fn), *program.args[:2], mode=mode)
    want_value, want_pull = jax.vjp(pair(program.plain), *program.args[:2])
    assert_close(value, want_value)
    assert_close(tuple(pull(cotangent)), tuple(want_pull(cotangent)))


# Auto is one of the others, which are tested in every pair.
@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        *itertools.product(MODES[:-1], MODES[:-1]),
        ("auto", "auto"),
        ("auto", "mixed"),
        ("mixed", "auto"),
    ],
)
def test_second_order_nests(x64, outer, inner):
    program = server_step(1)

    def slope(step, *rest):
        return fad.grad(program.fn, mode=inner)(step, *rest)

    second = jax.jit(fad.grad(slope, mode=outer))
    if outer.startswith("mixed") and inner in ("reverse", "auto"):  # auto: reverse
        with pytest.raises(fad.PlanError, match="do not meet at the server"):
            second(*program.args)
        return
    assert_close(second(*program.args), plain_second(1))


@pytest.mark.parametrize("mode", MODES)
def test_composes_with_jax(x64, mode):
    program = server_step(1)
    steps = jnp.array([0.3, 0.9])
    rest = program.args[1:]
    axes = (0, *[None] * len(rest))
    got = jax.jit(jax.vmap(fad.grad(program.fn, mode=mode), axes))(steps, *rest)
    want = jax.jit(jax.vmap(jax.grad(program.plain), axes))(steps, *rest)
    assert_close(got, want)
    twice = jax.jit(jax.grad(fad.grad(program.fn, mode=mode)))(*program.args)
    assert_close(twice, plain_second(1))


def test_static_arguments_stay_static(x64):
    @fad.program
    def powers(w, data, power, *, scale=1.0, name="loss"):
        assert name == "loss"
        total = 0.0
        for _ in range(power):
            total = total + fad.mean(fad.map(lambda x: w * x, data))
        return scale * total

    at = fad.AtClients(jnp.arange(1.0, CLIENTS + 1))
    for mode in MODES:
        got = fad.grad(powers, mode=mode)(2.0, at, 3, scale=0.5)
        np.testing.assert_allclose(got, 3.0)


def test_mixed_with_unrolled_rounds(x64):
    program = training(2, scan=False)
    got = fad.grad(program.fn, (0, 1), mode="mixed")(*program.args)
    assert_close(got, jax.grad(program.plain, (0, 1))(*program.args))


def test_mixed_with_an_input_that_only_the_last_round_reads(x64):
    program = training(1)

    def fn(w, h, scale, *rest):
        return scale * program.fn(w, h, *rest)

    def plain(w, h, scale, *rest):
        return scale * program.plain(w, h, *rest)

    args = (*program.args[:2], jnp.asarray(1.5), *program.args[2:])
    got = fad.grad(fn, (0, 2), mode="mixed")(*args)
    assert_close(got, jax.grad(plain, (0, 2))(*args))
    alone = fad.grad(fn, 2, mode="mixed")(*args)
    assert_close(alone, jax.grad(plain, 2)(*args))


def test_mixed_without_a_round_before(x64):
    """One round: every client returns its gradient, which is FedSGD."""
    program = training(1)
    w, test = program.args[0], program.args[3]
    got = fad.grad(evaluate, mode="mixed")
    assert_close(got(w, test), jax.grad(evaluate)(w, test))
    assert fad.plan(got)(w, test).cost().rounds == 1


@pytest.mark.parametrize("mode", MODES)
def test_closure_in_every_mode(mode):
    """What passes the check passes it in every mode, with nothing else revealed."""
    for program, argnums in ((training(2), (0, 1)), (weighted(3), 0)):
        if mode.startswith("mixed") and argnums == 0:
            continue  # its inputs live at the clients
        gradient = fad.grad(program.fn, argnums, mode=mode)
        assert not fad.check(program.fn)(*program.args).allowed
        assert not fad.check(gradient)(*program.args).allowed


def test_checkpoints_that_save_aggregates_repeat_no_sum(x64):
    program = training(3, scan=False)
    w, h, cohorts, test = program.args

    def train(w):
        for r in range(3):
            w = one_round(w, h, jax.tree.map(lambda x, r=r: x[r], cohorts))
        return w

    def measure(train):
        gradient = jax.grad(lambda w: evaluate(train(w), test))
        plan = fad.plan(gradient)(w)
        assert_close(gradient(w), want)
        return sum(len(r.up) for r in plan.rounds)

    want = jax.grad(lambda w: program.plain(w, h, cohorts, test))(w)
    plain = measure(train)
    saved = measure(jax.checkpoint(train, policy=fad.save_aggregates))
    repeated = measure(jax.checkpoint(train))
    assert saved == plain
    assert repeated == plain + 2  # the last round's aggregate is not needed again
