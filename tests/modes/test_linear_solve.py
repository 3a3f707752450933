"""Modes of a program with a linear solve by federated products."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests.subjects import assert_same

pytestmark = pytest.mark.usefixtures("x64")

DATA = fad.AtClients(jnp.array([[0.2, 0.1], [0.4, 0.3], [0.1, 0.5]], "float32"))
NAMED = ("forward", "reverse", "mixed", "mixed-products", "auto")


def richardson(matvec, b):
    step = lambda x, _: (x + (b - matvec(x)), None)  # noqa: E731
    return jax.lax.scan(step, b, length=60)[0]


@fad.program
def solve(w, data):
    matvec = lambda v: v + w * fad.mean(fad.map(lambda x: x * (x @ v), data))  # noqa: E731
    return jax.lax.custom_linear_solve(matvec, jnp.sin(w), richardson, richardson)


@fad.program
def after_the_solve(w, data):
    v = solve(w, data)
    return fad.mean(fad.map(lambda x: jnp.sum((v - x) ** 2), data))


@fad.program
def the_solve_is_last(w, data):
    return jnp.sum(solve(w, data) ** 2)


def arguments():
    wide = jax.tree.map(lambda x: x.astype("float64"), DATA)
    return jnp.array([0.3, 0.7]), wide


@pytest.mark.parametrize("mode", NAMED)
def test_a_round_after_the_solve(mode):
    args = arguments()
    found = jax.jit(fad.grad(after_the_solve, mode=mode))(*args)
    assert_same(found, jax.grad(after_the_solve)(*args), tol=1e-12)


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
def test_a_solve_at_the_end(mode):
    args = arguments()
    found = jax.jit(fad.grad(the_solve_is_last, mode=mode))(*args)
    assert_same(found, jax.grad(the_solve_is_last)(*args), tol=1e-12)


def test_a_last_round_inside_the_solve_cannot_be_cut_off():
    with pytest.raises(fad.PlanError, match="inside a loop, a branch, a linear solve"):
        fad.grad(the_solve_is_last, mode="mixed")(*arguments())
