"""Every solver against loops over clients, batches and rows, with its derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fad
from fad.local import Batches, client_key
from tests.solvers.programs import (
    LR,
    MASK,
    SOLVERS,
    WITH_PASSES,
    hard_cohort,
    hard_rows,
    loss_of,
    plain_run,
    run,
)

X = np.array([0.5, -1.0])
Y0 = np.array([1.0, -2.0, 0.5])
names = pytest.mark.parametrize("name", SOLVERS)
double = pytest.mark.usefixtures("x64")
pytestmark = pytest.mark.once


def _after(name, steps, weighting="uniform"):
    def after(lr, x, y):
        solver = SOLVERS[name](lr, weighting=weighting)
        return run(solver, x, y, hard_cohort(), steps=steps)[0]

    return after


@double
@names
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_five_steps_equal_loops_in_numpy(name, weighting):
    found = jax.jit(_after(name, 5, weighting))(LR, X, Y0)
    want = plain_run(name, LR, X, Y0, hard_rows(), steps=5, weighting=weighting)
    np.testing.assert_allclose(found, want, atol=1e-12)


@double
def test_scaffolds_server_step_equals_a_loop():
    solver = fad.solvers.scaffold(LR, server_lr=0.5)
    found, _ = run(solver, jnp.asarray(X), jnp.asarray(Y0), hard_cohort(), steps=3)
    want = plain_run("scaffold II", LR, X, Y0, hard_rows(), steps=3, server_lr=0.5)
    np.testing.assert_allclose(found, want, atol=1e-12)


@double
@names
def test_derivatives_equal_plain_jax(name):
    rows = jax.tree.map(lambda v: jnp.where(jnp.isnan(v), 0.0, v), hard_rows())

    def plain(lr, x, y):
        return plain_run(name, lr, x, y, rows, steps=2)

    args = jnp.asarray(LR), jnp.asarray(X), jnp.asarray(Y0)
    for mode in (jax.jacrev, jax.jacfwd):
        found = jax.jit(mode(_after(name, 2), (0, 1, 2)))(*args)
        want = mode(plain, (0, 1, 2))(*args)
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def _of_one_step(name):
    after = _after(name, 1)
    return jax.jit(lambda *args: jnp.sum(jnp.sin(after(*args))))


@double
@names
def test_derivatives_equal_differences(name):
    args = jnp.asarray(LR), jnp.asarray(X), jnp.asarray(Y0)
    check_grads(_of_one_step(name), args, order=1, modes=("fwd", "rev"))


@double
@pytest.mark.parametrize("name", ["svrg", "scaffold II"])
def test_second_derivatives_equal_differences(name):
    args = jnp.asarray(LR), jnp.asarray(X), jnp.asarray(Y0)
    check_grads(_of_one_step(name), args, order=2, modes=("rev",))


@double
@names
def test_gradient_by_the_examples(name):
    rows = hard_rows()

    def found(a):
        cohort = hard_cohort().unsafe_gather()
        cohort = cohort._replace(examples=cohort.examples._replace(a=a))
        solver = SOLVERS[name](LR)
        args = jnp.asarray(X), jnp.asarray(Y0), fad.AtClients(cohort)
        return jnp.sum(run(solver, *args, steps=2)[0] ** 2)

    def plain(a):
        return jnp.sum(plain_run(name, LR, X, Y0, rows._replace(a=a), steps=2) ** 2)

    a = jnp.asarray(rows.a)
    got, want = jax.jit(jax.grad(found))(a), jax.grad(plain)(a)
    np.testing.assert_allclose(got[MASK], want[MASK], atol=1e-10)
    assert not got[~MASK].any()


@names
def test_no_client_with_rows_leaves_y_and_finite_derivatives(name):
    def after(lr, x, y):
        cohort = hard_cohort().unsafe_gather()
        cohort = fad.AtClients(cohort._replace(mask=jnp.zeros_like(cohort.mask)))
        return run(SOLVERS[name](lr), x, y, cohort, steps=1)[0]

    args = jnp.float32(LR), jnp.asarray(X, "float32"), jnp.asarray(Y0, "float32")
    np.testing.assert_array_equal(after(*args), args[2])
    by_lr, by_x, by_y = jax.jit(jax.jacrev(after, (0, 1, 2)))(*args)
    assert not by_lr.any()
    assert not by_x.any()
    np.testing.assert_array_equal(by_y, np.eye(3))


@names
def test_a_nan_among_the_real_rows_is_not_hidden(name):
    cohort = hard_cohort().unsafe_gather()
    bad = cohort.examples.a.at[0, 0, 0].set(jnp.nan)
    cohort = fad.AtClients(cohort._replace(examples=cohort.examples._replace(a=bad)))
    args = jnp.asarray(X, "float32"), jnp.asarray(Y0, "float32"), cohort
    assert jnp.isnan(run(SOLVERS[name](LR), *args, steps=1)[0]).all()


@names
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("make", [float, jnp.float32])
def test_y_keeps_its_dtype(name, dtype, make):
    solver, cohort = SOLVERS[name](make(LR)), hard_cohort(dtype)
    y = {"a": jnp.asarray(Y0, dtype)}

    def loss(y, rows):
        return loss_of(jnp.asarray(X, dtype))(y["a"], rows)

    memory = solver.init(y, cohort)
    new = jax.eval_shape(lambda y, m: solver.step(loss, y, m, cohort, None), y, memory)
    assert jax.tree.structure(new) == jax.tree.structure((y, memory))
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves((y, memory)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_numbers_keep_the_precision_of_y():
    solver = fad.solvers.gradient_descent(0.1)
    with jax.enable_x64(True):
        batches = Batches(jnp.ones((1, 1, 1)), jnp.full((1, 1, 1), True), jnp.arange(1))
        cohort = fad.AtClients(batches)
        y, _ = solver.step(lambda y, e: y * e, jnp.zeros(()), None, cohort, None)
        assert y == -0.1


# ------------------------------------------------------------------------------------
# random losses
# ------------------------------------------------------------------------------------


def _noisy(y, rows, key):
    noise = jax.random.normal(key, (rows.a.shape[0], *y.shape), y.dtype)
    return loss_of(jnp.asarray(X))(y, rows) + noise @ y**3


def _mean_noisy_gradient(y, cohort, key):
    """Return the mean gradient of all rows, client by client."""
    batches = cohort.unsafe_gather()
    flat = jax.tree.map(lambda v: v.reshape(4, 6, *v.shape[3:]), batches.examples)
    slopes = []
    for i in np.flatnonzero(MASK.any((1, 2))):
        rows = jax.tree.map(lambda v, i=i: jnp.nan_to_num(v[i]), flat)
        own = client_key(key, batches.client[i])
        real = jnp.asarray(MASK[i].reshape(-1))
        total = lambda y, *a, real=real: jnp.sum(jnp.where(real, _noisy(y, *a), 0.0))  # noqa: E731
        slopes.append(jax.grad(total)(y, rows, own) / jnp.sum(real, dtype=float))
    return sum(slopes) / len(slopes)


@double
def test_a_random_loss_gets_each_clients_own_key():
    y, cohort, key = jnp.asarray(Y0), hard_cohort(), jax.random.key(4)
    solver = fad.solvers.gradient_descent(LR)
    found, _ = solver.step(_noisy, y, None, cohort, key)
    np.testing.assert_allclose(
        found, y - LR * _mean_noisy_gradient(y, cohort, key), atol=1e-12
    )


@double
@pytest.mark.parametrize("name", ["svrg", "fedlin"])
def test_both_gradients_of_a_corrected_step_see_the_same_noise(name):
    # After one local step the correction has cancelled, whatever the noise.
    y, key = jnp.asarray(Y0), jax.random.key(4)
    batches = hard_cohort().unsafe_gather()
    head = functools.partial(jax.tree.map, lambda v: v[:, :1])
    cohort = fad.AtClients(
        batches._replace(examples=head(batches.examples), mask=batches.mask[:, :1])
    )
    found, _ = SOLVERS[name](LR).step(_noisy, y, None, cohort, key)
    want, _ = fad.solvers.gradient_descent(LR).step(_noisy, y, None, cohort, key)
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("name", ["fedavg", "scaffold I", "scaffold II"])
def test_local_steps_draw_afresh(name):
    y, cohort = jnp.asarray(Y0, "float32"), hard_cohort("float32")
    noisy = lambda y, rows, key: jax.random.normal(key, (len(rows.a), 3)) @ y  # noqa: E731
    solver = SOLVERS[name](LR)
    step = jax.jit(
        lambda key: solver.step(noisy, y, solver.init(y, cohort), cohort, key)[0]
    )
    one, two = step(jax.random.key(0)), step(jax.random.key(1))
    assert jnp.all(one != two)


@double
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("name", WITH_PASSES)
def test_passes_are_batches_that_come_again(name, weighting):
    def twice(batches):
        again = lambda x: jnp.concatenate([x, x], axis=1)  # noqa: E731
        examples = jax.tree.map(again, batches.examples)
        return batches._replace(examples=examples, mask=again(batches.mask))

    cohort = hard_cohort()
    repeated = fad.AtClients(twice(cohort.unsafe_gather()))
    x, y = jnp.asarray(X), jnp.asarray(Y0)
    solver = SOLVERS[name](LR, weighting=weighting, passes=2)
    found, _ = run(solver, x, y, cohort, steps=2)
    solver = SOLVERS[name](LR, weighting=weighting)
    want, _ = run(solver, x, y, repeated, steps=2)
    np.testing.assert_allclose(found, want, atol=1e-12)
