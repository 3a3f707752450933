"""Rounds inside JAX's control flow."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests.compile.programs import (
    CLIENTS,
    average,
    check_same,
    check_same_for_each,
    make_data,
    make_params,
    make_weights,
    mean_loss,
)

pytestmark = pytest.mark.usefixtures("x64")


def _state():
    return fad.AtClients(jnp.zeros((CLIENTS, 3, 2)))


def _with_state(params, state, data):
    """Run a round of a method with a drift per client."""

    def work(p, s, d):
        g = jax.grad(lambda q: jnp.mean((d["x"] @ q["w"] - d["y"]) ** 2))(p)["w"] - s
        return p["w"] - 0.1 * g, s + 0.5 * g

    new, state = fad.map(work, fad.broadcast(params), state, data)
    return {**params, "w": fad.mean(new)}, state


@pytest.mark.parametrize("reverse", [False, True])
def test_rounds_with_a_cohort_each(reverse):
    def run(params, cohorts, weights):
        def body(p, cohort):
            new = average(p, cohort, weights)
            shares = fad.program(lambda w: fad.map(jnp.sum, w))(weights)
            return new, (mean_loss(new, cohort), shares)

        return jax.lax.scan(body, params, cohorts, reverse=reverse)

    args = make_params(), make_data(lead=(3,)), make_weights()
    check_same(run, *args)
    check_same(jax.grad(lambda *a: run(*a)[1][0].sum(), (0, 1)), *args, chunks=(3,))


def test_state_at_the_clients_in_the_carry():
    @fad.program
    def run(params, state, data):
        def body(carry, _):
            params, state = _with_state(*carry, data=data)
            return (params, state), fad.sum(state)

        return jax.lax.scan(body, (params, state), None, length=3)

    args = make_params(), _state(), make_data()
    check_same(run, *args, chunks=(1, 3, None))
    check_same(jax.grad(lambda *a: run(*a)[1].sum(), (0, 1, 2)), *args, chunks=(3,))


def test_state_and_a_cohort_each():
    def run(params, state, cohorts):
        def body(carry, cohort):
            params, state = fad.program(_with_state)(*carry, cohort)
            return (params, state), (mean_loss(params, cohort), state)

        return jax.lax.scan(body, (params, state), cohorts)

    args = make_params(), _state(), make_data(lead=(2,))
    check_same(run, *args)
    check_same(jax.grad(lambda *a: run(*a)[1][0].sum(), (0, 1, 2)), *args, chunks=(3,))


def test_nested_scans():
    @fad.program
    def run(params, data, weights):
        def inner(p, _):
            return average(p, data, weights), mean_loss(p, data)

        def outer(p, scale):
            p, losses = jax.lax.scan(inner, p, None, length=2)
            return jax.tree.map(lambda v: v * scale, p), losses

        return jax.lax.scan(outer, params, jnp.array([1.0, 0.5]))

    check_same(run, make_params(), make_data(), make_weights())


def test_a_scan_of_no_rounds_and_of_one():
    def run(length):
        def body(p, _):
            return average(p, data, weights), mean_loss(p, data)

        return lambda p: jax.lax.scan(body, p, None, length=length)

    data, weights = make_data(), make_weights()
    check_same(run(1), make_params())
    check_same(run(0), make_params(), chunks=(3,))


def test_a_scan_over_client_values_that_stay_there():
    @fad.program
    def one(w, cohort):
        return w + fad.mean(cohort), fad.map(lambda v: jnp.outer(v, v) @ w, cohort)

    def run(w, cohorts):
        _, made = jax.lax.scan(one, w, cohorts)
        total = fad.program(fad.sum)
        return jax.lax.scan(lambda t, y: (t + total(y), None), jnp.zeros(2), made)[0]

    cohorts = fad.AtClients(jnp.arange(42.0).reshape(3, 7, 2))
    check_same(run, jnp.ones(2), cohorts, chunks=(1, 3, None))


def test_switch():
    @fad.program
    def run(index, x):
        branches = [fad.sum, fad.mean, lambda d: fad.sum(fad.map(jnp.square, d))]
        return jax.lax.switch(index, branches, x)

    x = fad.AtClients(jnp.arange(7.0))
    check_same_for_each(run, [(jnp.asarray(index), x) for index in range(3)])


def test_a_cond_that_returns_client_values():
    @fad.program
    def run(flag, w, x):
        wide = lambda s: lambda d: fad.map(lambda v: s * jnp.outer(v, v), d)  # noqa: E731
        out = jax.lax.cond(flag, wide(w), wide(2 * w), x)
        return fad.sum(fad.map(jnp.sin, out)), out

    x = fad.AtClients(jnp.ones((7, 3)))
    both = [(jnp.asarray(flag), jnp.asarray(2.0), x) for flag in (True, False)]
    check_same_for_each(run, both, chunks=(1, 3, None))
    check_same_for_each(lambda *a: run(*a)[0], both, chunks=(1, 3, None))
    check_same_for_each(jax.grad(lambda *a: run(*a)[0].sum(), (1, 2)), both)


def test_a_cond_on_an_aggregate_with_data_passed_through():
    @fad.program
    def run(x, least):
        enough = fad.sum(x)[0] > least
        out = jax.lax.cond(enough, lambda d: d, lambda d: fad.map(jnp.cos, d), x)
        return fad.sum(fad.map(jnp.sin, out))

    x = fad.AtClients(jnp.arange(21.0).reshape(7, 3))
    check_same_for_each(run, [(x, jnp.asarray(least)) for least in (0.0, 1e9)])


def test_a_cond_in_a_scan_with_client_state():
    @fad.program
    def run(params, state, data):
        def body(carry, i):
            step = lambda p, s: _with_state(p, s, data)  # noqa: E731
            return jax.lax.cond(i % 2 == 0, step, lambda p, s: (p, s), *carry), i

        return jax.lax.scan(body, (params, state), jnp.arange(3))[0]

    args = make_params(), _state(), make_data()
    check_same(run, *args)
    check_same(
        jax.grad(lambda *a: run(*a)[0]["w"].sum(), (0, 1, 2)), *args, chunks=(3,)
    )


def test_while_and_fori_loops():
    @fad.program
    def run(params, data, weights):
        start = params, 2 * mean_loss(params, data), 0
        params, *_ = jax.lax.while_loop(
            lambda c: (mean_loss(c[0], data) < c[1]) & (c[2] < 4),
            lambda c: (average(c[0], data, weights), mean_loss(c[0], data), c[2] + 1),
            start,
        )
        return jax.lax.fori_loop(0, 2, lambda _, p: average(p, data, weights), params)

    check_same(run, make_params(), make_data(), make_weights())


def test_a_while_loop_with_client_state():
    @fad.program
    def run(x):
        return jax.lax.while_loop(
            lambda d: fad.sum(d) > 1, lambda d: fad.map(lambda v: v / 2, d), x
        )

    check_same(run, fad.AtClients(jnp.ones(7)), chunks=(1, 3, None))


def test_implicit_gradient_by_conjugate_gradients():
    """``jax.scipy.sparse.linalg.cg`` with a federated Hessian-vector product."""

    @fad.program
    def solve(reg, params, data):
        def loss(p):
            fit = fad.map(
                lambda q, d: jnp.mean((d["x"] @ q - d["y"]) ** 2),
                fad.broadcast(p),
                data,
            )
            return fad.mean(fit) + reg * jnp.sum(p**2)

        def matvec(v):
            return jax.jvp(jax.grad(loss), (params,), (v,))[1]

        return jax.scipy.sparse.linalg.cg(matvec, jax.grad(loss)(params), maxiter=8)[0]

    args = jnp.asarray(0.1), make_params()["w"], make_data()
    check_same(solve, *args, tol=1e-9)
    check_same(jax.grad(lambda *a: solve(*a).sum()), *args, tol=1e-9, chunks=(3,))


def test_a_custom_linear_solve_with_a_transposed_solver():
    @fad.program
    def solve(b, data):
        matvec = lambda v: v + fad.mean(fad.map(lambda x: x * (x @ v), data))  # noqa: E731
        cg = lambda mv, y: jax.scipy.sparse.linalg.cg(mv, y)[0]  # noqa: E731
        return jax.lax.custom_linear_solve(matvec, b, cg, symmetric=True)

    args = jnp.ones(3), fad.AtClients(jnp.arange(21.0).reshape(7, 3) / 21)
    check_same(solve, *args, tol=1e-9)
    check_same(
        jax.grad(lambda *a: solve(*a).sum(), (0, 1)), *args, tol=1e-9, chunks=(3,)
    )


def _rounds_in_a_branch(params, data, weights, length=2):
    def body(p, _):
        return average(p, data, weights), None

    def work(p):
        return jax.lax.scan(body, p, None, length=length)[0]

    go = mean_loss(params, data) > 0
    return jax.lax.cond(go, work, lambda p: p, params)


def test_gradient_of_a_cond_around_rounds():
    """What clients keep of a branch's rounds is stored, and said to be."""

    def run(*args):
        return _rounds_in_a_branch(*args)["w"].sum()

    args = make_params(), make_data(), make_weights()
    check_same(jax.grad(run, (0, 2)), *args)
    report = fad.jit(jax.grad(run), chunk=1).explain(*args)
    assert sum(s.stored for s in report.sweeps) > 0


def test_gradient_of_a_scan_of_conds_around_rounds():
    def run(params, data, weights):
        def body(p, _):
            return _rounds_in_a_branch(p, data, weights), None

        params, _ = jax.lax.scan(body, params, None, length=2)
        return mean_loss(params, data)

    args = make_params(), make_data(), make_weights()
    check_same(jax.grad(run), *args, chunks=(3,))


def test_client_values_stacked_and_returned():
    @fad.program
    def run(w, data):
        def body(w, _):
            new = w + fad.mean(fad.map(lambda v: jnp.sin(v + w), data))
            return new, fad.map(lambda v: jnp.outer(v, w), data)

        w, made = jax.lax.scan(body, w, None, length=3)
        add = lambda t, y: (t + fad.sum(y), None)  # noqa: E731
        total, _ = jax.lax.scan(add, jnp.zeros((3, 3)), made)
        return total, made.unsafe_gather()[-1].sum()

    args = jnp.ones(3), fad.AtClients(jnp.arange(21.0).reshape(7, 3))
    check_same(run, *args)
    check_same(jax.grad(lambda *a: run(*a)[0].sum(), (0, 1)), *args, chunks=(3,))
