"""Agnostic federated learning against a loop over clients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import fedavg
from algorithms.afl import Config, afl
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import leaves_out, python_round

pytestmark = pytest.mark.once

KEY, CLIENT, GAMMA, CLIENTS = jax.random.key(0), optax.sgd(0.2), 0.3, 6
SGD: dict[str, Any] = {"server": optax.sgd(1.0), "client": CLIENT}


def make(**options: Any):
    options = {"num_clients": CLIENTS, "weights_lr": GAMMA, **options}
    return afl(loss, init_params, **options, **SGD)


def run(algorithm, cohort, rounds):
    state, step, metrics = algorithm.init(KEY), jax.jit(algorithm.step), {}
    for t in range(rounds):
        state, metrics = step(state, cohort, jax.random.key(t))
    return state, metrics


def on_simplex(v):
    """Project by sorting (Duchi et al., 2008)."""
    u = np.sort(v)[::-1]
    above = (np.cumsum(u) - 1) / np.arange(1, len(v) + 1)
    last = np.flatnonzero(u > above)[-1]
    return np.maximum(v - above[last], 0)


def client_delta(federation, params, i):
    """One client's update, as FedAvg's of a federation of it alone."""
    own = federation._replace(clients=[federation.clients[i]])
    return python_round(own, params, client=CLIENT)


def mean_loss(params, client):
    if not len(client[0]):
        return 0.0
    rows = {"x": jnp.asarray(client[0]), "y": jnp.asarray(client[1])}
    return float(jnp.mean(loss(params, rows)))


def test_equals_a_loop_over_clients(x64, federation):
    state, metrics = run(make(), federation.cohort, 4)
    params, weights = init_params(KEY), np.full(CLIENTS, 1 / CLIENTS)
    agnostic = 0.0
    for _ in range(4):
        deltas = [client_delta(federation, params, i) for i in (1, 2, 3)]
        losses = np.zeros(CLIENTS)
        losses[:4] = [mean_loss(params, c) for c in federation.clients]
        own = weights[1:4] / weights[1:4].sum()
        params = jax.tree.map(
            lambda p, *d, own=own: p + sum(w * x for w, x in zip(own, d, strict=True)),
            params,
            *deltas,
        )
        agnostic = own @ losses[1:4]
        weights = on_simplex(weights + GAMMA * losses)
    for got, want in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-10)
    np.testing.assert_allclose(state.weights, weights, atol=1e-10)
    np.testing.assert_allclose(metrics["agnostic_loss"], agnostic, rtol=1e-10)


def test_without_ascent_it_is_uniform_fedavg(x64, federation):
    state, _ = run(make(weights_lr=0.0), federation.cohort, 2)
    uniform = fedavg.fedavg(loss, init_params, weighting="uniform", **SGD)
    want, _ = run(uniform, federation.cohort, 2)
    np.testing.assert_allclose(state.params["w"], want.params["w"], rtol=1e-12)


def test_weights_go_to_the_worst(x64, federation):
    state, metrics = run(make(), federation.cohort, 1)
    losses = [mean_loss(init_params(KEY), c) for c in federation.clients]
    assert state.weights.argmax() == np.argmax(losses)
    np.testing.assert_allclose(state.weights.sum(), 1)
    assert metrics["largest_weight"] == state.weights.max()


def test_the_derivative_by_the_ascent(x64, federation):
    """Through the projection too, against finite differences."""

    def after(gamma):
        params = run(make(weights_lr=gamma), federation.cohort, 3)[0].params
        return jnp.sum(params["w"] ** 2)

    slope = jax.grad(after)(0.02)
    near = (after(0.02 + 1e-5) - after(0.02 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, near, rtol=1e-5)


@pytest.mark.parametrize("chosen", [0, 3], ids=["one empty client", "one client"])
def test_a_cohort_of_one(federation, chosen):
    cohort = jax.tree.map(lambda a: a[chosen : chosen + 1], federation.cohort)
    state, metrics = run(make(), cohort, 1)
    assert all(jnp.isfinite(x) for x in metrics.values())
    moved = jnp.abs(state.params["w"] - init_params(KEY)["w"]).max()
    assert (moved > 0) == (chosen == 3)


def test_a_place_that_stayed_empty_touches_no_weight(federation):
    batches = federation.cohort.unsafe_gather()
    client = batches.client.at[0].set(-1)
    state, _ = run(make(), fad.AtClients(batches._replace(client=client)), 1)
    same, _ = run(make(), federation.cohort, 1)
    np.testing.assert_allclose(state.weights, same.weights, rtol=1e-6)


def test_leaves_out_what_is_not_finite(x64, federation):
    """Nor does its loss move lambda."""
    leaves_out(make(nonfinite="exclude"), federation)


def test_communication(federation):
    """All weights go down, and all places up."""
    algorithm = make()
    args = algorithm.init(KEY), federation.cohort, KEY
    cost, model = fad.plan(algorithm.step)(*args).cost(), 4 * 4
    assert (cost.rounds, cost.bytes_down) == (1, model + 4 * CLIENTS)
    # The update, the loss and their weight; the loss and its weight; all places.
    assert cost.bytes_up == model + 4 * 4 + 4 * CLIENTS
    assert cost.client_state_bytes == 0


def test_ranges():
    with pytest.raises(ValueError, match=r"weights_lr: expected >= 0, got -1\.0"):
        Config(weights_lr=-1.0)
