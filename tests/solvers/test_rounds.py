"""What solvers send, and that the house's tools take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.solvers.programs import LR, SOLVERS, hard_cohort, loss_of, run

names = pytest.mark.parametrize("name", SOLVERS)
SIZE = 3 * 4  # bytes of y
COUNT = 4  # of a weight


def _step(name):
    """Return a step that y, the memory and x enter, and its arguments."""
    solver, cohort = SOLVERS[name](LR), hard_cohort("float32")
    y = jnp.array([1.0, -2.0, 0.5])

    def step(x, y, memory, cohort):
        return solver.step(loss_of(x), y, memory, cohort, None)

    return solver, step, (jnp.array([0.5, -1.0]), y, solver.init(y, cohort), cohort)


@names
def test_a_step_is_planned_as_the_rounds_it_says(name):
    solver, step, args = _step(name)
    assert fad.plan(step)(*args).cost().rounds == solver.rounds


@pytest.mark.parametrize(
    ("name", "down", "up"),
    [
        ("fedavg", 1, 1),
        ("gradient_descent", 1, 1),
        ("svrg", 3, 2),  # y; y and q
        ("fedlin", 3, 2),
        ("scaffold I", 2, 2),
        ("scaffold II", 2, 2),
    ],
)
def test_what_a_step_sends(name, down, up):
    solver, step, args = _step(name)
    cost = fad.plan(step)(*args).cost()
    x = 2 * 4 * solver.rounds
    assert cost.bytes_down == down * SIZE + x
    assert cost.bytes_up == up * SIZE + COUNT * solver.rounds


@names
def test_steps_in_a_scan_are_planned_too(name):
    solver, _, (x, y, _, cohort) = _step(name)
    three = lambda y, c: run(solver, x, y, c, steps=3)[0]  # noqa: E731
    assert fad.plan(three)(y, cohort).cost().rounds == 3 * solver.rounds


@names
def test_client_values_reach_the_server_through_sums_alone(name):
    _, step, args = _step(name)
    report = fad.check(step)(*args)
    assert not report.allowed
    where = {o.path: o.where for o in report.outputs}
    clients = [path for path, at in where.items() if at == "clients"]
    assert clients == (["output[1].clients"] if "scaffold" in name else [])


@names
def test_init_sends_nothing(name):
    solver, _, (_, y, memory, cohort) = _step(name)
    text = str(jax.make_jaxpr(solver.init)(y, cohort))
    assert "fad_sum" not in text
    assert "fad_broadcast" not in text
    assert (memory is None) == ("scaffold" not in name)


@names
def test_fad_jit_streams_a_step_and_its_gradient(name):
    solver, _, (x, y, _, cohort) = _step(name)

    def loss(x, y, cohort):
        return jnp.sum(run(solver, x, y, cohort, steps=2)[0] ** 2)

    streamed = fad.jit(jax.value_and_grad(loss, (0, 1)), chunk=1)(x, y, cohort)
    plain = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, y, cohort)
    for a, b in zip(jax.tree.leaves(streamed), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@names
def test_vmap_over_step_sizes(name):
    _, _, (x, y, _, cohort) = _step(name)

    def after(lr):
        return run(SOLVERS[name](lr), x, y, cohort, steps=2)[0]

    lrs = jnp.array([0.1, 0.3])
    found = jax.jit(jax.vmap(after))(lrs)
    for lr, got in zip(lrs, found, strict=True):
        np.testing.assert_allclose(got, jax.jit(after)(lr), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["forward", "reverse", "mixed"])
@pytest.mark.parametrize("name", ["svrg", "scaffold II"])
def test_the_modes_of_fad_grad_agree(name, mode):
    _, step, (x, *rest) = _step(name)

    def loss(x):
        y, _ = step(x, *rest)
        return jnp.sum(y**2)

    found = jax.jit(fad.grad(loss, mode=mode))(x)
    np.testing.assert_allclose(found, jax.jit(jax.grad(loss))(x), rtol=2e-5, atol=1e-6)
