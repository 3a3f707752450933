"""q-FFL against a loop over clients, and its special cases."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import fedavg
from algorithms.qffl import Config, qffl
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import leaves_out

pytestmark = pytest.mark.once

KEY, LR = jax.random.key(0), 0.2
SGD: dict[str, Any] = {"server": optax.sgd(1.0), "client": optax.sgd(LR)}


def make(q, **options: Any):
    return qffl(loss, init_params, q=q, lipschitz=1 / LR, **SGD, **options)


def plain_round(params, federation, q, variant, weighting):
    """Algorithm 1 or 2 with one client after the other."""
    totals, curvature = jax.tree.map(jnp.zeros_like, params), 0.0
    for x, y in federation.clients:
        if not len(x):
            continue
        rows = {"x": jnp.asarray(x), "y": jnp.asarray(y)}

        def mean_loss(p, rows=rows):
            return jnp.mean(loss(p, rows))

        value, u = jax.value_and_grad(mean_loss)(params)
        if variant == "avg":
            p = params
            for start in range(0, len(x), federation.batch):
                own = {k: v[start : start + federation.batch] for k, v in rows.items()}
                slope = jax.grad(lambda p, own=own: jnp.mean(loss(p, own)))(p)
                p = jax.tree.map(lambda a, g: a - LR * g, p, slope)
            u = jax.tree.map(lambda a, b: (a - b) / LR, params, p)
        share = len(x) if weighting == "examples" else 1.0
        square = sum(jnp.sum(v**2) for v in jax.tree.leaves(u))
        curvature += share * (q * value ** (q - 1) * square + value**q / LR)
        totals = jax.tree.map(lambda t, v, s=share * value**q: t + s * v, totals, u)
    return jax.tree.map(lambda p, t: p - t / curvature, params, totals)


def run(algorithm, cohort, rounds):
    state, step, metrics = algorithm.init(KEY), jax.jit(algorithm.step), {}
    for t in range(rounds):
        state, metrics = step(state, cohort, jax.random.key(t))
    return state, metrics


def assert_close(a, b, tol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


@pytest.mark.parametrize(
    ("q", "variant", "weighting"),
    [(0.5, "avg", "examples"), (2.0, "avg", "uniform"), (0.5, "sgd", "examples")],
)
def test_equals_a_loop_over_clients(x64, federation, q, variant, weighting):
    state, _ = run(make(q, variant=variant, weighting=weighting), federation.cohort, 3)
    want = init_params(KEY)
    for _ in range(3):
        want = plain_round(want, federation, q, variant, weighting)
    assert_close(state.params, want, 1e-9)  # 1e-10 is added to every loss


def test_q_zero_is_fedavg(x64, federation):
    state, metrics = run(make(0.0), federation.cohort, 2)
    want, _ = run(fedavg.fedavg(loss, init_params, **SGD), federation.cohort, 2)
    assert_close(state.params, want.params, 1e-12)
    assert metrics["loss_to_q"] == 1


def test_the_derivative_by_q(x64, federation):
    """Three rounds differentiate in q as a loop does."""

    def norm(params):
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    def by_fad(q):
        return norm(run(make(q), federation.cohort, 3)[0].params)

    def by_loop(q):
        params = init_params(KEY)
        for _ in range(3):
            params = plain_round(params, federation, q, "avg", "examples")
        return norm(params)

    got, want = jax.grad(by_fad)(0.5), jax.jit(jax.grad(by_loop))(0.5)
    np.testing.assert_allclose(got, want, rtol=1e-8)


def test_large_q_favours_large_losses(x64, federation):
    """The largest of the clients' losses falls below FedAvg's."""

    def largest(params):
        clients = [c for c in federation.clients if len(c[0])]
        rows = [{"x": jnp.asarray(x), "y": jnp.asarray(y)} for x, y in clients]
        return max(float(jnp.mean(loss(params, r))) for r in rows)

    fair, _ = run(make(2.0), federation.cohort, 40)
    plain, _ = run(make(0.0), federation.cohort, 40)
    assert largest(fair.params) < largest(plain.params)


@pytest.mark.parametrize("chosen", [0, 3], ids=["one empty client", "one client"])
def test_a_cohort_of_one(federation, chosen):
    algorithm = make(1.0)
    cohort = jax.tree.map(lambda a: a[chosen : chosen + 1], federation.cohort)
    state, metrics = run(algorithm, cohort, 1)
    moved = jnp.abs(state.params["w"] - algorithm.init(KEY).params["w"]).max()
    assert (moved > 0) == (chosen == 3)
    assert all(jnp.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize("variant", ["avg", "sgd"])
def test_leaves_out_what_is_not_finite(x64, federation, variant):
    leaves_out(make(1.0, variant=variant, nonfinite="exclude"), federation)


def test_communication(federation):
    algorithm = make(1.0)
    args = algorithm.init(KEY), federation.cohort, KEY
    cost, model = fad.plan(algorithm.step)(*args).cost(), 4 * 4
    assert (cost.rounds, cost.bytes_down) == (1, model)
    # Delta and h; the loss and its power with their weight.
    assert cost.bytes_up == model + 4 * 4


def test_ranges():
    with pytest.raises(ValueError, match=r"q: expected >= 0, got -1\.0"):
        Config(q=-1.0)
