"""Linear solves by federated products: the rounds of the solver that runs."""

import jax
import jax.numpy as jnp
import pytest

import fad
from fad._compat import Primitive
from tests.plan.programs import CLIENTS, F32, SIZE, clients, floats, wires

TERMS = 5
ARGS = floats(SIZE), clients()


def richardson(matvec, b, terms=TERMS):
    step = lambda x, _: (x + (b - matvec(x)), None)  # noqa: E731
    return jax.lax.scan(step, b, length=terms)[0]


@fad.program
def product(v, data):
    return fad.mean(fad.map(lambda x: jnp.tanh(x) * v, data))


def solve(b, data, **options):
    """A solve, each product one round that sends a vector and sums one."""
    options = {"symmetric": True, **options}
    run = lambda v: product(v, data)  # noqa: E731
    return jax.lax.custom_linear_solve(run, b, richardson, **options)


def squares(b, data, **options):
    return jnp.sum(solve(b, data, **options) ** 2)


def test_the_solver_is_counted_and_the_matrices_are_not():
    assert wires(solve, *ARGS) == [(["f32[40]"], ["f32[40]"])] * TERMS
    cost = fad.plan(solve)(*ARGS).cost()
    assert (cost.bytes_down, cost.bytes_up) == (TERMS * F32 * SIZE,) * 2
    assert cost.client_flops == TERMS * 2 * SIZE  # tanh and times
    assert cost.client_state_bytes == 0


def test_reverse_mode_counts_the_transposed_solver():
    assert fad.plan(jax.grad(squares))(*ARGS).cost().rounds == 2 * TERMS
    options = {
        "symmetric": False,
        "transpose_solve": lambda matvec, b: richardson(matvec, b, terms=2),
    }
    plan = fad.plan(jax.grad(lambda *args: squares(*args, **options)))(*ARGS)
    assert len(plan.rounds) == TERMS + 2
    assert all(len(r.down) == len(r.up) == 1 for r in plan.rounds)


def test_the_derivative_of_the_matrix_is_a_round_more():
    def of(scale, b, data):
        run = lambda v: scale * product(v, data)  # noqa: E731
        x = jax.lax.custom_linear_solve(run, b, richardson, symmetric=True)
        return jnp.sum(x**2)

    args = floats(), *ARGS
    # The product with the solution can go with the first round of the second solve.
    assert fad.plan(jax.grad(of))(*args).cost().rounds == 2 * TERMS
    assert fad.plan(jax.jacfwd(of))(*args).cost().rounds == 2 * TERMS + 1


def test_iterations_of_a_solver_are_sent_what_they_need_and_keep_nothing():
    """Though what does not depend on the vector could be worked out in advance."""

    @fad.program
    def run(w, b, data):
        curved = lambda w: fad.mean(fad.map(lambda x: jnp.sin(w) * x, data))  # noqa: E731
        matvec = lambda v: jax.jvp(curved, (w,), (v,))[1]  # noqa: E731
        return jax.lax.custom_linear_solve(matvec, b, richardson)

    plan = fad.plan(run)(floats(SIZE), *ARGS)
    assert [len(r.down) for r in plan.rounds] == [2] * TERMS
    assert plan.cost().client_state_bytes == 0


def test_sums_in_a_scan_inside_a_product_share_a_round():
    def run(b, data):
        def matvec(v):
            add = lambda total, s: (total + product(s * v, data), None)  # noqa: E731
            return jax.lax.scan(add, v, jnp.arange(1.0, 4.0))[0]

        return jax.lax.custom_linear_solve(matvec, b, richardson)

    assert fad.plan(run)(*ARGS).cost().rounds == TERMS


def test_a_solve_in_each_iteration_of_a_scan():
    def run(b, data):
        return jax.lax.scan(lambda b, _: (solve(b, data), None), b, length=3)[0]

    assert fad.plan(run)(*ARGS).cost().rounds == 3 * TERMS


def test_several_tangents_at_once():
    run = jax.jacfwd(lambda s, b, d: solve(s[0] * b + s[1] * b**2, d))
    plan = fad.plan(run)(floats(2), *ARGS)
    assert len(plan.rounds) == TERMS
    assert {w.text for r in plan.rounds for w in r.up} == {"f32[2,40]"}


def test_a_matrix_that_the_solver_does_not_ask_is_no_communication():
    def run(b, data):
        matvec = lambda v: v + product(v, data)  # noqa: E731
        return jax.lax.custom_linear_solve(matvec, b, lambda _, b: b / 2)

    with pytest.raises(fad.PlanError, match="no federated primitive"):
        fad.plan(run)(*ARGS)


def test_a_solve_at_a_client_is_its_work():
    """Counted by the solver, without the products that derivatives are made of."""

    def work(x):
        halve = lambda _, b: b / 2  # noqa: E731
        return jax.lax.custom_linear_solve(lambda v: 2 * v, x, halve, halve)

    run = fad.program(lambda data: fad.mean(fad.map(work, data)))
    cost = fad.plan(run)(clients()).cost()
    assert cost.rounds == 1
    assert cost.client_flops == SIZE


def test_check_follows_the_solver():
    report = fad.check(jax.grad(squares))(*ARGS)
    assert report.outputs[0].where == "server"
    assert len(report.reveals) == 2  # the products of each solve

    def leaking(b, data):
        own = data.unsafe_gather()
        matvec = lambda v: v * own[0]  # noqa: E731
        return jax.lax.custom_linear_solve(matvec, b, richardson, symmetric=True)

    with pytest.raises(fad.PlacementError, match=r"through 'slice'(.|\n)*leaking"):
        fad.check(leaking)(*ARGS)


def _twice(*args, jaxprs):
    del jaxprs
    return args[0]


twice_p = Primitive("twice")
twice_p.def_abstract_eval(_twice)


def test_a_primitive_that_cannot_be_followed_is_named():
    def program(b, data):
        inner = jax.make_jaxpr(lambda d: product(b, fad.AtClients(d)))
        jaxpr = inner(jnp.ones((CLIENTS, SIZE)))
        return twice_p.bind(data.unsafe_gather(), jaxprs=(jaxpr, jaxpr))

    message = "inside the primitive 'twice', which the planner cannot follow"
    with pytest.raises(fad.PlanError, match=message):
        fad.plan(program)(jnp.ones(SIZE), clients())
