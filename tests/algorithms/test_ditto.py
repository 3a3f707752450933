"""Ditto: FedAvg for the global model, NumPy and closed forms for the personal ones."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.ditto import Config, build, ditto
from algorithms.fedavg import fedavg
from tests.algorithms.classical import (
    partial_cohorts,
    quadratic,
    quadratic_loss,
    run_partially,
    start,
)
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedprox import assert_same, half, local_sgd, spoiled
from tests.algorithms.test_hypergradient_descent import (
    CLIENT_LR,
    MODEL,
    equal_gradients,
    first_params,
    flat,
    mean,
    pooled,
)

pytestmark = pytest.mark.once

PERSONAL_LR, LAM, ROUNDS = 0.1, 0.7, 20


def make(**options):
    options = {
        "personal": optax.sgd(PERSONAL_LR),
        "lam": LAM,
        "server_lr": 0.8,
    } | options
    server, client = optax.sgd(1.0), optax.sgd(CLIENT_LR)
    return ditto(loss, init_params, server=server, client=client, **options)


def by_hand(xp, federation, ids, lam):
    p, rows = first_params(), []
    personal = [p] * len(federation.clients)
    for some in ids:
        shared, own = [], []
        for i in some:
            shared.append(local_sgd(xp, federation, i, p, lambda z: 0 * z))
            own.append(
                local_sgd(
                    xp,
                    federation,
                    i,
                    personal[i],
                    lambda z, p=p: lam * (z - p),
                    lr=PERSONAL_LR,
                )
            )
            personal[i] = own[-1][0]
        models, losses, n = zip(*shared, strict=True)
        rows.append((mean(losses, n), mean([x[1] for x in own], n)))
        p = p + 0.8 * mean([z - p for z in models], n)
    return p, personal, rows


def test_equals_numpy_and_leaves_fedavg_as_it_is(x64, federation):
    ids = partial_cohorts(4, ROUNDS, 3)
    state, table, rows = run_partially(make(), federation.cohort, ids)
    p, personal, want = by_hand(np, federation, ids, LAM)
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    for i, v in enumerate(personal):
        own = flat(jax.tree.map(lambda x, i=i: x[i], table))
        np.testing.assert_allclose(own, v, rtol=1e-10)
    got = [(r["train_loss"], r["personal_loss"]) for r in rows]
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert_same(jax.tree.map(lambda x: x[0], table), make().init(jax.random.key(0))[0])

    server, client = optax.sgd(1.0), optax.sgd(CLIENT_LR)
    plain = fedavg(loss, init_params, server=server, client=client, server_lr=0.8)
    after, _, metrics = run_partially(plain, federation.cohort, ids)
    np.testing.assert_allclose(flat(state.params), flat(after.params), rtol=1e-12)
    losses = [r["train_loss"] for r in metrics]
    np.testing.assert_allclose([r["train_loss"] for r in rows], losses, rtol=1e-12)


def test_personal_models_fit_their_clients_and_lam_draws_them(x64):
    """On quadratics: v_i = (H_i + lam)^-1 (b_i + lam x), at FedAvg's fixed point x."""
    problem, lr = quadratic(), 0.3
    hessians = np.einsum("nij,nik->njk", problem.a, problem.a)
    targets = np.einsum("nij,ni->nj", problem.a, problem.b)

    def after(lam):
        algorithm = ditto(
            quadratic_loss,
            lambda key: jnp.zeros(3),
            server=optax.sgd(1.0),
            client=optax.sgd(lr),
            personal=optax.sgd(lr / (1 + lam)),
            lam=lam,
        )
        state, table, rows = run_partially(
            algorithm, problem.cohort, [np.arange(5)] * 60
        )
        v, x = np.asarray(table), np.asarray(state.params)
        pulled = hessians + lam * np.eye(3)
        want = np.linalg.solve(pulled, (targets + lam * x)[..., None])[..., 0]
        np.testing.assert_allclose(v, want, rtol=1e-6)
        return x, v, rows[-1]["personal_loss"]

    x, near, loss_near = after(1.0)
    residuals = np.einsum("nij,j->ni", problem.a, x) - problem.b
    loss_global = (residuals**2).sum(axis=1).mean() / 2
    same, own, loss_own = after(0.0)
    np.testing.assert_allclose(same, x, rtol=1e-12)
    _, followers, loss_followers = after(100.0)
    losses = [loss_own, loss_near, loss_followers, loss_global]
    assert losses[0] < 1e-6
    assert 2 * losses[1] < losses[2] < losses[3], losses
    ways = [np.linalg.norm(v - x, axis=1).max() for v in (own, near, followers)]
    assert ways[0] > 2 * ways[1] > 40 * ways[2], ways


def test_differentiates_in_lam(x64, federation):
    """The personal models' losses after three rounds; the global one knows no lam."""

    def losses(personal):
        return sum(pooled(jnp, federation, v) for v in personal)

    def by_fad(lam):
        algorithm = make(lam=lam)

        def one_round(carry, _):
            state, own = carry
            state, _, own = algorithm.step(
                state, federation.cohort, jax.random.key(0), own
            )
            return (state, own), None

        (_, own), _ = jax.lax.scan(one_round, start(algorithm, 4), None, length=3)
        v = own.unsafe_gather()
        return losses(jnp.concatenate([v["w"], v["b"][:, None]], axis=1))

    def plainly(lam):
        return losses(by_hand(jnp, federation, [range(4)] * 3, lam)[1])

    equal_gradients(by_fad, plainly, LAM)


def test_leaves_out_what_is_not_finite(x64, federation):
    algorithm, key = make(nonfinite="exclude"), jax.random.key(1)
    step = jax.jit(algorithm.step)
    state, own = start(algorithm, 4)
    state, _, own = step(state, federation.cohort, key, own)
    nan, gone = spoiled(federation.cohort, 2)
    got, metrics, kept = step(state, nan, key, own)
    want, without, same = step(state, gone, key, own)
    assert_same((got, kept), (want, same))
    assert (metrics["excluded_clients"], without["excluded_clients"]) == (1, 0)
    assert_same(kept.unsafe_gather()["w"][2], own.unsafe_gather()["w"][2])
    assert (kept.unsafe_gather()["w"][3] != own.unsafe_gather()["w"][3]).all()

    # A personal model alone that is not finite: the client still serves the global one.
    lost = jax.tree.map(lambda v: v.at[2].set(jnp.nan), own.unsafe_gather())
    usual, _, _ = step(state, federation.cohort, key, own)
    after, metrics, _ = step(state, federation.cohort, key, fad.AtClients(lost))
    assert_same(after, usual)
    assert metrics["excluded_clients"] == 0
    assert np.isfinite(metrics["personal_loss"])


def test_one_client_alone_and_a_refused_nan(x64, federation):
    algorithm, key = make(), jax.random.key(0)
    step, (state, first) = jax.jit(algorithm.step), start(algorithm, 1)
    nan, _ = spoiled(federation.cohort, 3)
    for cohort, finite in ((federation.cohort, True), (nan, False)):
        alone = jax.tree.map(lambda a: a[3:], cohort)
        after, metrics, own = step(state, alone, key, first)
        for x in jax.tree.leaves((after.params, metrics["personal_loss"], own)):
            assert np.isfinite(x).all() == finite


def test_a_personal_model_never_leaves_its_client(federation):
    algorithm, key = make(), jax.random.key(0)
    state, own = start(algorithm, 4)
    args = state, federation.cohort, key, own
    sent = fad.plan(algorithm.step)(*args).cost()
    assert (sent.rounds, sent.bytes_down) == (1, MODEL)
    assert MODEL < sent.bytes_up <= MODEL + 4 * 9
    assert not sent.same_cohort
    report = fad.check(algorithm.step)(*args)
    assert not report.allowed
    # Of vectors there is one sum, that of the updates of w.
    assert [r.type for r in report.reveals if r.type != "f32[]"] == ["f32[3]"]
    # Nothing of the new state depends on the memory.
    other = jax.tree.map(lambda x: x + 1, args[-1])
    step = jax.jit(algorithm.step)
    assert_same(step(*args)[0], step(*args[:3], other)[0])


def test_keeps_dtypes(federation):
    algorithm = make()
    state, own = half(start(algorithm, 4))
    args = state, half(federation.cohort), jax.random.key(0), own
    with jax.numpy_dtype_promotion("strict"):
        after, _, kept = jax.eval_shape(algorithm.step, *args)
    for x in jax.tree.leaves((after, kept)):
        assert x.dtype == jnp.bfloat16


def test_is_built_from_its_config(federation):
    task: Any = SimpleNamespace(loss=loss, init=init_params)
    algorithm = build(Config(lam=0.5), task)
    assert algorithm.init_client is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -0.1}, r"lam: expected in \[0, inf\), got -0.1"),
        ({"personal_lr": 0.0}, r"personal_lr: expected in \(0, inf\), got 0.0"),
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_personal_models_that_all_fail_are_counted_and_end_the_run(federation):
    algorithm = make(personal=optax.sgd(np.inf), nonfinite="exclude")
    state, own = start(algorithm, 4)
    step = jax.jit(algorithm.step)
    _, metrics, kept = step(state, federation.cohort, jax.random.key(0), own)
    assert np.isnan(metrics["personal_loss"])
    assert metrics["excluded_personal"] > 0 == metrics["excluded_clients"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))
