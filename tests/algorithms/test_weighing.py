"""FedAvg, FedNova, AFL and q-FFL against NumPy with partial participation."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algorithms.afl import afl
from algorithms.fedavg import fedavg
from algorithms.fednova import fednova
from algorithms.qffl import qffl
from tests.algorithms.classical import (
    distances,
    partial_cohorts,
    quadratic,
    quadratic_loss,
    run_partially,
)
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_afl import on_simplex
from tests.algorithms.test_hypergradient_descent import (
    CLIENT_LR,
    equal_gradients,
    first_params,
    flat,
    gradient,
    loss_after,
    pooled,
    updates,
)

pytestmark = pytest.mark.once

ROUNDS, COHORT = 20, 3
SERVER: Any = {"server": optax.sgd(1.0)}
SGD: Any = {**SERVER, "client": optax.sgd(CLIENT_LR)}


def losses_of(p, clients):
    """Each client's mean loss, 0 without examples."""
    found = [(np.tanh(x @ p[:3] + p[3]) - y) ** 2 for x, y in clients]
    return np.array([v.mean() if len(v) else 0.0 for v in found])


def after(federation, one_round):
    """The params after the rounds, each with its own clients, by hand."""
    p, ids = first_params(), partial_cohorts(4, ROUNDS, COHORT)
    for some in ids:
        own = federation._replace(clients=[federation.clients[i] for i in some])
        found, sizes = updates(np, own, p)
        p = p + one_round(p, own, np.array(found), sizes, some)
    return p


def by_fad(algorithm, federation):
    ids = partial_cohorts(4, ROUNDS, COHORT)
    state, _, _ = run_partially(algorithm, federation.cohort, ids)
    return flat(state.params)


def average(values, weights):
    return weights @ values / weights.sum()


def test_fedavg(x64, federation):
    want = after(federation, lambda p, own, d, n, ids: average(d, n))
    got = by_fad(fedavg(loss, init_params, **SGD), federation)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_fednova(x64, federation):
    def one_round(p, own, d, n, ids):
        steps = np.ceil(n / federation.batch)
        normalised = d / np.maximum(steps, 1)[:, None]
        return average(steps, n) * average(normalised, n)

    algorithm = fednova(loss, init_params, client_lr=CLIENT_LR, **SERVER)
    want = after(federation, one_round)
    np.testing.assert_allclose(by_fad(algorithm, federation), want, rtol=1e-10)


def test_afl(x64, federation):
    weights, gamma = np.full(4, 1 / 4), 0.3

    def one_round(p, own, d, n, ids):
        nonlocal weights
        share, seen = np.where(n > 0, weights[ids], 0), np.zeros(4)
        seen[ids] = losses_of(p, own.clients)
        weights = on_simplex(weights + gamma * seen)
        return average(d, share) if share.sum() else np.zeros(4)

    options: Any = {"num_clients": 4, "weights_lr": gamma}
    got = by_fad(afl(loss, init_params, **options, **SGD), federation)
    np.testing.assert_allclose(got, after(federation, one_round), rtol=1e-10)


def test_afl_differentiates_in_the_ascent(x64, federation):
    options: Any = {"num_clients": 4, **SGD}

    def fads(gamma):
        return loss_after(
            afl(loss, init_params, weights_lr=gamma, **options), federation
        )

    def plainly(gamma):
        p, weights = first_params(), jnp.full(4, 1 / 4)
        for _ in range(3):
            d, n = updates(jnp, federation, p)
            there = [
                (jnp.tanh(x @ p[:3] + p[3]) - y) ** 2 for x, y in federation.clients
            ]
            seen = jnp.stack([v.mean() if len(v) else jnp.zeros(()) for v in there])
            share = jnp.where(n > 0, weights, 0)
            p = p + share @ jnp.stack(d) / share.sum()
            ascended = weights + gamma * seen
            weights = optax.projections.projection_simplex(ascended)
        return pooled(jnp, federation, p)

    equal_gradients(fads, plainly, 0.02)


@pytest.mark.parametrize("variant", ["avg", "sgd"])
def test_qffl(x64, federation, variant):
    q, lipschitz = 0.5, 1 / CLIENT_LR

    def one_round(p, own, d, n, ids):
        before = losses_of(p, own.clients) + 1e-10  # as there
        u = -lipschitz * d
        if variant == "sgd":
            u = np.array(
                [
                    gradient(np, p, x, y) if len(x) else np.zeros(4)
                    for x, y in own.clients
                ]
            )
        h = q * before ** (q - 1) * (u**2).sum(1) + lipschitz * before**q
        return -(n * before**q) @ u / (n @ h)

    options: Any = {"q": q, "lipschitz": lipschitz, "variant": variant}
    got = by_fad(qffl(loss, init_params, **options, **SGD), federation)
    np.testing.assert_allclose(got, after(federation, one_round), rtol=1e-10)


def test_fednova_removes_the_inconsistency_of_unequal_steps(x64):
    """FedAvg goes to the optimum in which a client counts by its steps."""
    steps, lr = np.array([2, 20, 1, 5, 12]), 1e-3
    problem = quadratic(steps=tuple(steps))
    hessians = np.einsum("nij,nik->njk", problem.a, problem.a)
    slopes = np.einsum("nij,ni->nj", problem.a, problem.b)
    weighed = np.linalg.solve(np.einsum("n,njk->jk", steps, hessians), steps @ slopes)
    away = np.linalg.norm(weighed - problem.optimum)
    assert away > 0.4

    def start(key):
        return jnp.asarray(problem.optimum)

    uniform: Any = {"weighting": "uniform"}
    plain = fedavg(quadratic_loss, start, client=optax.sgd(lr), **SERVER, **uniform)
    nova = fednova(quadratic_loss, start, client_lr=lr, **SERVER, **uniform)
    drift = distances(nova, problem, 1000)[-1]
    stalls = distances(plain, problem, 1000)[-1]
    # What is left of FedNova's is the drift of local steps, of the order of lr.
    assert drift < 0.03 * away
    assert abs(stalls - away) < 0.05 * away
