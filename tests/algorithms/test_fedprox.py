"""FedProx against NumPy, FedAvg, and its own fixed point on quadratics."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.fedprox import Config, build, fedprox
from tests.algorithms.classical import (
    distances,
    fedavg_stays,
    partial_cohorts,
    quadratic,
    quadratic_loss,
    run_partially,
)
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_hypergradient_descent import (
    CLIENT_LR,
    MODEL,
    cost,
    equal_gradients,
    equals_fedavg,
    first_params,
    flat,
    gradient,
    loss_after,
    mean,
    pooled,
    run,
    survives_hard_data,
    sweeps,
)

pytestmark = pytest.mark.once


def make(**options):
    options = {"client": optax.sgd(CLIENT_LR), "mu": 0.7, "server_lr": 0.8} | options
    return fedprox(loss, init_params, server=optax.sgd(1.0), **options)


# What the tests of its kin share.


def local_sgd(xp, federation, i, p, term, *, lr=CLIENT_LR, momentum=0.0, steps=None):
    """A client's model after its batches, and the mean loss of the rows as seen.

    ``term(own)`` is added to the gradient; ``steps`` goes through the batches again.
    """
    own, memory, total, count = p, xp.zeros(4), 0.0, 0
    x, y = federation.clients[i]
    starts = range(0, len(x), federation.batch)
    for k in range(len(starts) if steps is None else steps * (len(x) > 0)):
        start = starts[k % len(starts)]
        some = x[start : start + federation.batch], y[start : start + federation.batch]
        total += xp.sum((xp.tanh(some[0] @ own[:3] + own[3]) - some[1]) ** 2)
        count += len(some[1])
        memory = gradient(xp, own, *some) + term(own) + momentum * memory
        own = own - lr * memory
    return own, total / max(count, 1), count


def half(tree):
    """The tree with bfloat16 for float32."""
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree
    )


def spoiled(cohort, client):
    """The cohort with a NaN at one client, and the cohort without its rows."""
    batches = cohort.unsafe_gather()
    y = batches.examples["y"].at[client, 0, 0].set(jnp.nan)
    nan = batches._replace(examples={**batches.examples, "y": y})
    gone = batches._replace(mask=batches.mask.at[client].set(False))
    return fad.AtClients(nan), fad.AtClients(gone)


def assert_same(a, b):
    """Assert that two trees are the same to the bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


# FedProx itself.


def by_hand(xp, federation, ids, mu, *, adaptive=False, momentum=0.0):
    p, last, fallen, rows = first_params(), np.inf, 0, []
    for some in ids:
        found = [
            local_sgd(
                xp,
                federation,
                i,
                p,
                lambda own, p=p, mu=mu: mu * (own - p),
                momentum=momentum,
            )
            for i in some
        ]
        models, losses, n = zip(*found, strict=True)
        now = mean(losses, n)
        rows.append((now, mu))
        p = p + 0.8 * mean([own - p for own in models], n)
        if adaptive:
            fallen = fallen + 1 if now < last < np.inf else 0
            mu = mu + 0.1 if now > last else mu
            if fallen == 5:
                mu, fallen = max(mu - 0.1, 0), 0
            last = now
    return p, rows


@pytest.mark.parametrize("options", [{"momentum": 0.5}, {"adaptive": True}])
def test_equals_numpy(x64, federation, options):
    """With momentum too, which is on the whole gradient; mu falls, rests and rises."""
    mu = 0.15
    same = [np.array([1, 2, 3])] * 12  # a loss that falls
    ids = same + partial_cohorts(4, 10, 3)
    client = optax.sgd(CLIENT_LR, momentum=options.get("momentum"))
    adaptive = options.get("adaptive", False)
    algorithm = make(mu=mu, client=client, adaptive=adaptive)
    state, _, rows = run_partially(algorithm, federation.cohort, ids)
    p, want = by_hand(np, federation, ids, mu, **options)
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    got, want = np.array([(r["train_loss"], r["mu"]) for r in rows]), np.array(want)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-15)
    if adaptive:
        found = want[:, 1]
        np.testing.assert_allclose(found[[5, 6, 11]], [0.15, 0.05, 0], atol=1e-15)
        assert found[-1] > 0.25
    else:
        assert set(want[:, 1]) == {mu}


def test_without_the_term_it_is_fedavg(x64, federation):
    equals_fedavg(make(mu=0.0), federation, server_lr=0.8)


def test_the_fixed_point_is_nearer_to_the_optimum(x64):
    """FedAvg with 10 local steps stalls at its bias, FedProx at less: closed form."""
    problem, lr, steps = quadratic(), 0.3, 10
    biases = []
    for mu in (0.0, 1.0):
        algorithm = fedprox(
            quadratic_loss,
            lambda key: jnp.zeros(3),
            server=optax.sgd(1.0),
            client=optax.sgd(lr),
            mu=mu,
        )
        biases.append(distances(algorithm, problem, 80)[-1])
        stays = fedavg_stays(problem, lr, steps, mu)
        bias = np.linalg.norm(stays - problem.optimum)
        np.testing.assert_allclose(biases[-1], bias, rtol=1e-8)
    assert 0 < biases[1] < 0.6 * biases[0]


def test_differentiates_in_mu(x64, federation):
    def by_fad(mu):
        return loss_after(make(mu=mu), federation)

    def plainly(mu):
        p, _ = by_hand(jnp, federation, [range(4)] * 3, mu)
        return pooled(jnp, federation, p)

    equal_gradients(by_fad, plainly, 0.7)


def test_hard_data_and_sweeps(x64, federation):
    survives_hard_data(make(), federation)
    sweeps(make(), federation, jnp.array([0.1, 3.0]), "mu")


def test_leaves_out_what_is_not_finite(x64, federation):
    algorithm = make(nonfinite="exclude", adaptive=True)
    state, _ = run(algorithm, federation, 1)
    step, key = jax.jit(algorithm.step), jax.random.key(1)
    nan, gone = spoiled(federation.cohort, 2)
    got, metrics = step(state, nan, key)
    want, without = step(state, gone, key)
    assert_same(got, want)
    assert (metrics["excluded_clients"], without["excluded_clients"]) == (1, 0)

    # With nobody there is no loss to move mu by, nor to compare with.
    batches = federation.cohort.unsafe_gather()
    nobody = fad.AtClients(batches._replace(mask=jnp.zeros_like(batches.mask)))
    still, _ = step(state, nobody, key)
    assert_same(still, state)
    alone = jax.tree.map(lambda a: a[2:3], nan)
    assert np.isnan(step(state, alone, key)[1]["train_loss"])  # which ends a run


def test_keeps_dtypes(federation):
    algorithm = fedprox(
        loss,
        lambda key: half(init_params(key)),
        server=optax.sgd(1.0),
        client=optax.sgd(0.1),
        mu=0.1,
        adaptive=True,
    )
    state = algorithm.init(jax.random.key(0))
    with jax.numpy_dtype_promotion("strict"):
        after, _ = jax.eval_shape(
            algorithm.step, state, half(federation.cohort), jax.random.key(0)
        )
    assert_same(*(jax.tree.map(lambda x: str(x.dtype), s) for s in (after, state)))


def test_sends_mu_and_few_numbers_more_than_fedavg(federation):
    sent = cost(make(), federation)
    assert (sent.rounds, sent.bytes_down) == (1, MODEL + 4)
    assert MODEL < sent.bytes_up <= MODEL + 4 * 5


def test_is_built_from_its_config(federation):
    task: Any = SimpleNamespace(loss=loss, init=init_params)
    algorithm = build(Config(mu=0.5, adaptive=True, client_lr=CLIENT_LR), task)
    assert algorithm.init(jax.random.key(0)).mu == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": -0.1}, r"mu: expected in \[0, inf\), got -0.1"),
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
