"""MAML and Per-FedAvg: the gradient of the loss after adaptation, and its shortcuts."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import fad
from algorithms._personal import adapted_loss
from algorithms.per_fedavg import Config, build, maml, maml_loss, per_fedavg
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import assert_close

pytestmark = pytest.mark.once

LR, KEY = 0.2, jax.random.key(0)
DERIVATIVES = ("exact", "first_order", "hessian_free")


def objective(federation, steps=1, derivative: Any = "exact", **options):
    """The mean loss after adaptation, as a function of the params alone."""
    after = adapted_loss(loss, lr=LR, steps=steps, derivative=derivative, **options)
    program = maml_loss(after)

    def mean(params, cohort=federation.cohort):
        total, weight = program(params, cohort, KEY)
        return total / weight.astype(total.dtype)

    return mean


def mean_loss(params, x, y):
    return jnp.mean(loss(params, {"x": jnp.asarray(x), "y": jnp.asarray(y)}))


def adapt(params, x, y, steps, by=lambda g: g):
    for _ in range(steps):
        g = by(jax.grad(mean_loss)(params, x, y))
        params = jax.tree.map(lambda p, d: p - LR * d, params, g)
    return params


def plain(params, federation, steps=1, by=lambda g: g):
    """The same by a loop over clients, in plain JAX: rows are support, query, ..."""
    total, count = 0.0, 0
    for x, y in federation.clients:
        if len(x) > 1:
            adapted = adapt(params, x[::2], y[::2], steps, by)
            total += len(x[1::2]) * mean_loss(adapted, x[1::2], y[1::2])
            count += len(x[1::2])
    return total / count


@pytest.mark.parametrize("steps", [1, 3])
def test_exact_is_the_gradient_of_the_program(x64, federation, steps):
    params = init_params(KEY)
    got = jax.jit(jax.value_and_grad(objective(federation, steps)))(params)
    want = jax.jit(jax.value_and_grad(lambda p: plain(p, federation, steps)))(params)
    assert_close(got, want, 1e-10)


@pytest.mark.parametrize("mode", ["forward", "reverse", "mixed"])
def test_in_every_mode(x64, federation, mode):
    params = init_params(KEY)
    got = jax.jit(fad.grad(objective(federation), mode=mode))(params)
    assert_close(got, jax.grad(plain)(params, federation), 1e-10)


def test_exact_agrees_with_differences(x64, federation):
    check_grads(jax.jit(objective(federation, 2)), (init_params(KEY),), order=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_drops_the_hessian(x64, federation, steps):
    params = init_params(KEY)
    got = jax.jit(jax.grad(objective(federation, steps, "first_order")))(params)
    want = jax.grad(plain)(params, federation, steps, jax.lax.stop_gradient)
    assert_close(got, want, 1e-10)


@pytest.mark.parametrize("steps", [1, 3])
def test_hessian_free_is_off_by_the_square_of_delta(x64, federation, steps):
    params = init_params(KEY)
    value, exact = jax.jit(jax.value_and_grad(objective(federation, steps)))(params)
    exact = ravel_pytree(exact)[0]

    @jax.jit
    def hessian_free(delta):
        mean = objective(federation, steps, "hessian_free", delta=delta)
        found, gradient = jax.value_and_grad(mean)(params)
        return found, ravel_pytree(gradient)[0]

    def error(delta):
        found, gradient = hessian_free(delta)
        np.testing.assert_allclose(found, value, rtol=1e-12)
        return np.linalg.norm(gradient - exact) / np.linalg.norm(exact)

    errors = np.array([error(delta) for delta in (0.1, 0.05, 0.025)])
    np.testing.assert_allclose(errors[:-1] / errors[1:], 4, rtol=0.05)
    assert error(1e-4) < 1e-7


QUADRATICS = fad.data.Quadratics.random(6, lower_size=4, upper_size=1, seed=0).clients


def quadratic_loss(y, rows):
    curved = jnp.einsum("i,bij,j->b", y, rows["A"], y)
    return curved / 2 + rows["a"] @ y


def quadratic_cohort():
    """Three clients, each with a quadratic of support and one of query."""
    rows = {k: jnp.asarray(getattr(QUADRATICS, k)) for k in ("A", "a")}
    rows = jax.tree.map(lambda x: x.reshape(3, 1, 2, *x.shape[1:]), rows)
    mask = jnp.ones((3, 1, 2), bool)
    return fad.AtClients(fad.local.Batches(rows, mask, jnp.arange(3)))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_closed_form_on_quadratics(x64, derivative, steps):
    """The factor (I - lr A)^K of the exact gradient; first order takes it as one."""
    y, q = np.linspace(-1, 1, 4), QUADRATICS
    want = np.zeros(4)
    for s, t in ((0, 1), (2, 3), (4, 5)):
        shrink = np.linalg.matrix_power(np.eye(4) - LR * q.A[s], steps)
        still = -np.linalg.solve(q.A[s], q.a[s])
        gradient = q.A[t] @ (still + shrink @ (y - still)) + q.a[t]
        factor = np.eye(4) if derivative == "first_order" else shrink
        want += factor @ gradient / 3
    after = adapted_loss(quadratic_loss, lr=LR, steps=steps, derivative=derivative)

    def total(y):
        return maml_loss(after)(y, quadratic_cohort(), KEY)[0] / 3

    got = jax.jit(jax.grad(total))(jnp.asarray(y))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_learns_the_inner_step(x64, federation):
    """The exact loss differentiates in the step of the adaptation too (Meta-SGD)."""
    params = init_params(KEY)

    def total(lr):
        program = maml_loss(adapted_loss(loss, lr=lr, steps=2))
        return program(params, federation.cohort, KEY)[0]

    check_grads(jax.jit(total), (jnp.asarray(0.2),), order=1)


SERVER, CLIENT = optax.sgd(1.0), optax.sgd(0.3)


def test_maml_is_a_step_on_that_gradient(x64, federation):
    algorithm = maml(loss, init_params, server=SERVER, inner_lr=LR, server_lr=0.5)
    state = algorithm.init(KEY)
    after, metrics = jax.jit(algorithm.step)(state, federation.cohort, KEY)
    value, g = jax.value_and_grad(plain)(state.params, federation)
    want = jax.tree.map(lambda p, d: p - 0.5 * d, state.params, g)
    assert_close(after.params, want, 1e-10)
    np.testing.assert_allclose(metrics["train_loss"], value, rtol=1e-10)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_per_fedavg_takes_a_meta_step_a_batch(x64, federation, derivative, weighting):
    """By a loop: batches of 5 rows, of which every other row of the client is query."""
    algorithm = per_fedavg(
        loss,
        init_params,
        server=SERVER,
        client=CLIENT,
        inner_lr=LR,
        derivative=derivative,
        delta=1e-5,
        weighting=weighting,
    )
    state = algorithm.init(KEY)
    by = jax.lax.stop_gradient if derivative == "first_order" else lambda g: g
    change, weights = jax.tree.map(jnp.zeros_like, state.params), 0.0
    for x, y in federation.clients:
        p, seen = state.params, 0
        for start in range(0, len(x), federation.batch):
            rows = np.arange(start, min(start + federation.batch, len(x)))
            s, q = rows[rows % 2 == 0], rows[rows % 2 == 1]
            if not len(s) or not len(q):
                continue
            meta = lambda p, s=s, q=q, x=x, y=y: mean_loss(  # noqa: E731
                adapt(p, x[s], y[s], 1, by), x[q], y[q]
            )
            p = jax.tree.map(lambda p, g: p - 0.3 * g, p, jax.grad(meta)(p))
            seen += len(q)
        weight = seen if weighting == "examples" else float(seen > 0)
        change = jax.tree.map(
            lambda c, a, b, w=weight: c + w * (a - b), change, p, state.params
        )
        weights += weight
    want = jax.tree.map(lambda p, c: p + c / weights, state.params, change)
    after, _ = jax.jit(algorithm.step)(state, federation.cohort, KEY)
    assert_close(after.params, want, 1e-8 if derivative == "hessian_free" else 1e-10)


def one_client(federation, i):
    return jax.tree.map(lambda x: x[i : i + 1], federation.cohort)


def algorithms():
    options = {"server": SERVER, "inner_lr": LR, "derivative": "exact"}
    yield per_fedavg(loss, init_params, client=CLIENT, **options)
    yield maml(loss, init_params, **options)
    yield maml(loss, init_params, **{**options, "derivative": "hessian_free"})


@pytest.mark.parametrize("i", [0, 1])
def test_a_client_of_no_or_one_row_changes_nothing(federation, i):
    for algorithm in algorithms():
        state = algorithm.init(KEY)
        after, _ = jax.jit(algorithm.step)(state, one_client(federation, i), KEY)
        assert_close(after.params, state.params, 0)


def test_nan_shows(federation):
    """It must not be dropped with a weight, so that a run is stopped."""
    bad = jax.tree.map(
        lambda x: x.at[3].set(jnp.nan) if x.ndim == 4 else x, federation.cohort
    )
    for algorithm in algorithms():
        after, metrics = jax.jit(algorithm.step)(algorithm.init(KEY), bad, KEY)
        assert np.isnan(metrics["train_loss"])
        assert np.isnan(after.params["w"]).all()


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_a_random_loss_has_keys_of_its_own(federation, derivative):
    def noisy(params, examples, key):
        noise = 0.1 * jax.random.normal(key, examples["y"].shape)
        return loss(params, {**examples, "y": examples["y"] + noise})

    options = {"inner_lr": LR, "derivative": derivative, "random_loss": True}
    for algorithm in (
        maml(noisy, init_params, server=SERVER, **options),
        per_fedavg(noisy, init_params, server=SERVER, client=CLIENT, **options),
    ):
        state, step = algorithm.init(KEY), jax.jit(algorithm.step)
        one, again, other = (
            step(state, federation.cohort, jax.random.key(k))[0].params["b"]
            for k in (1, 1, 2)
        )
        assert one == again != other


@pytest.mark.parametrize("meta_step", ["clients", "server"])
def test_one_round_as_large_as_fedavg_s(federation, meta_step):
    task: Any = types.SimpleNamespace(loss=loss, init=init_params)
    algorithm = build(Config(meta_step=meta_step), task)
    args = algorithm.init(KEY), federation.cohort, KEY
    cost = fad.plan(algorithm.step)(*args).cost()
    model = 4 * 4  # three weights and a bias in float32
    assert (cost.rounds, cost.client_state_bytes) == (1, 0)
    # Down also the weight 1 of the sum; up the loss and its weight.
    assert cost.bytes_down == model + (4 if meta_step == "server" else 0)
    assert cost.bytes_up == model + 8
    assert not fad.check(algorithm.step)(*args).allowed


def test_streamed_as_together(x64, federation):
    for algorithm in algorithms():
        args = algorithm.init(KEY), federation.cohort, KEY
        one = fad.jit(algorithm.step, chunk=1)(*args)
        assert_close(one, jax.jit(algorithm.step)(*args), 1e-12)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("inner_lr", 0.0, "inner_lr: expected > 0, got 0.0"),
        ("delta", -1.0, "delta: expected > 0, got -1.0"),
        ("inner_steps", 0, "inner_steps: expected >= 1, got 0"),
        ("client_lr", 0.0, r"client_lr: expected in \(0, inf\), got 0.0"),
    ],
)
def test_ranges(option, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{option: value})
