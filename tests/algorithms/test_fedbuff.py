"""FedBuff against NumPy, FedAvg, and a simulated clock."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.fedavg import fedavg
from algorithms.fedbuff import Config, State, fedbuff
from tests.algorithms.classical import (
    distances,
    partial_cohorts,
    quadratic,
    quadratic_loss,
    run_partially,
    subset,
)
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_hypergradient_descent import (
    CLIENT_LR,
    MODEL,
    equal_gradients,
    first_params,
    flat,
    pooled,
    updates,
)

pytestmark = pytest.mark.once


def make(**options: Any):
    options = {"client": optax.sgd(CLIENT_LR), "server_lr": 0.7} | options
    return fedbuff(loss, init_params, **options)


def run(algorithm, cohort, ids) -> Any:
    return run_partially(algorithm, cohort, ids)


def by_hand(xp, federation, ids, *, exponent=0.5, divisor="buffer", oldest=np.inf):
    """The model, the clients' models and versions, and each round's staleness."""
    x, sent, rows, t = first_params(), [(first_params(), 0)] * 4, [], 0
    for some in ids:
        terms, weights, stale = [], [], []
        for i in some:
            y, version = sent[i]
            if not len(federation.clients[i][0]):
                continue
            alone = federation._replace(clients=[federation.clients[i]])
            ((delta,), _) = updates(xp, alone, y)
            stale.append(t - version)
            if t - version <= oldest:
                weights.append((1.0 + t - version) ** -exponent)
                terms.append(weights[-1] * delta)
        if terms:
            x = x + 0.7 * sum(terms) / (
                len(terms) if divisor == "buffer" else sum(weights)
            )
            t += 1
        for i in some:
            if len(federation.clients[i][0]):
                sent[i] = x, t
        rows.append((np.mean(stale), len(stale) - len(terms)))
    return x, sent, rows


@pytest.mark.parametrize(
    ("divisor", "oldest"), [("buffer", None), ("buffer", 1), ("weights", 2)]
)
def test_equals_numpy(x64, federation, divisor, oldest):
    ids = partial_cohorts(4, 20, 2)
    algorithm = make(divisor=divisor, max_staleness=oldest)
    state, table, rows = run(algorithm, federation.cohort, ids)
    limit = np.inf if oldest is None else oldest
    x, sent, want = by_hand(np, federation, ids, divisor=divisor, oldest=limit)
    np.testing.assert_allclose(flat(state.params), x, rtol=1e-10)
    assert state.version == max(v for _, v in sent)
    np.testing.assert_array_equal(table.version, [v for _, v in sent])
    for i, (y, _) in enumerate(sent):
        own = jax.tree.map(lambda a, i=i: a[i], table.params)
        np.testing.assert_allclose(flat(own), y, rtol=1e-10)
    got = [(r["staleness"], r["dropped_clients"]) for r in rows]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert max(stale for stale, _ in want) >= 2
    assert (sum(dropped for _, dropped in want) > 2) == (oldest is not None)


def test_who_always_comes_makes_it_fedavg(x64, federation):
    options: dict[str, Any] = {"client": optax.sgd(CLIENT_LR), "server_lr": 0.7}
    plain = fedavg(
        loss, init_params, server=optax.sgd(1.0), weighting="uniform", **options
    )
    ids = [np.arange(4)] * 4
    want, _, losses = run(plain, federation.cohort, ids)
    got, table, rows = run(make(max_staleness=0), federation.cohort, ids)
    np.testing.assert_allclose(flat(got.params), flat(want.params), rtol=1e-12)
    np.testing.assert_array_equal(table.version, [0, 4, 4, 4])
    for own, other in zip(rows, losses, strict=True):
        assert own["staleness"] == own["dropped_clients"] == 0
        np.testing.assert_allclose(own["train_loss"], other["train_loss"], rtol=1e-12)


def clock(means, size, updates):
    """Who fills each buffer and when; durations half-normal as in the paper."""
    rng, now, cohorts, times = np.random.default_rng(0), 0.0, [], []

    def durations(some):
        return means[some] * np.abs(rng.normal(size=len(some)))

    ends = durations(np.arange(len(means)))
    for _ in range(updates):
        some = np.sort(np.argsort(ends)[:size])
        now = max(now, ends[some].max())
        ends[some] = now + durations(some)
        cohorts.append(some)
        times.append(now)
    return cohorts, np.array(times)


def test_needs_less_time_than_waiting_for_the_slowest(x64):
    """A quarter of FedAvg's to the same distance; the slow are stale the most."""
    problem, means = quadratic(steps=(5,) * 10), np.array([1.0] * 8 + [4.0, 8.0])
    start = quadratic_loss, lambda key: jnp.full(3, 10.0)
    options: dict[str, Any] = {"client": optax.sgd(0.1)}
    cohorts, times = clock(means, 2, 50)
    buffered = fedbuff(*start, server_lr=0.1, exponent=0.0, **options)
    state, _, rows = run(buffered, problem.cohort, cohorts)
    distance = np.linalg.norm(state.params - problem.optimum)
    assert distance < 4  # from 17
    plain = fedavg(*start, server=optax.sgd(1.0), weighting="uniform", **options)
    reached = np.flatnonzero(distances(plain, problem, 8) < distance)[0]
    assert clock(means, 10, 8)[1][reached] > 4 * times[-1]
    assert 3 < np.mean([r["staleness"] for r in rows]) < 4
    arrivals = np.bincount(np.concatenate(cohorts))
    assert arrivals[8:].max() < arrivals[:8].min()


def test_differentiates_in_the_exponent(x64, federation):
    ids = [np.array(some) for some in ([0, 1], [2, 3], [1, 3])]

    def by_fad(exponent):
        algorithm = make(exponent=exponent)
        p = run(algorithm, federation.cohort, ids)[0].params
        return pooled(jnp, federation, jnp.append(p["w"], p["b"]))

    def plainly(exponent):
        x, _, _ = by_hand(jnp, federation, ids, exponent=exponent)
        return pooled(jnp, federation, x)

    equal_gradients(by_fad, plainly, 0.5)


def test_communication(federation):
    """A model up, then a model down, with its version."""
    algorithm, key = make(max_staleness=3), jax.random.key(0)
    state = algorithm.init(key)
    sent = fad.AtClients(jax.tree.map(lambda x: jnp.stack([x] * 4), state))
    args = state, federation.cohort, key, sent
    cost = fad.plan(algorithm.step)(*args).cost()
    assert cost.rounds == 2
    assert cost.bytes_down == MODEL + 4 + 4  # the version now and the new one
    assert cost.bytes_up == MODEL + 34  # sums for means and metrics
    assert cost.client_state_bytes == 1  # whether it keeps what it has
    report = fad.check(algorithm.step)(*args)
    assert [o.where for o in report.outputs].count("clients") == 3


def test_hard_data(x64, federation):
    batches, key = federation.cohort.unsafe_gather(), jax.random.key(0)
    y = batches.examples["y"].at[2, 0, 0].set(jnp.nan)
    spoiled = fad.AtClients(batches._replace(examples={**batches.examples, "y": y}))
    refuse, exclude = (make(nonfinite=n) for n in ("refuse", "exclude"))
    step = jax.jit(exclude.step)
    first, ids = refuse.init(key), np.array([[0, 1, 2, 3], [0, 1, 0, 3], [0, 0, 0, 0]])
    state = State(jax.tree.map(lambda x: x + 0.1, first.params), first.version + 3)
    sent = fad.AtClients(jax.tree.map(lambda x: jnp.stack([x] * 4), first))

    after, metrics, kept = step(state, spoiled, key, sent)
    want, others, _ = step(state, subset(spoiled, ids[1]), key, sent)
    jax.tree.map(np.testing.assert_array_equal, after, want)
    assert (metrics["excluded_clients"], others["excluded_clients"]) == (1, 0)
    assert metrics["train_loss"] == others["train_loss"]
    assert metrics["staleness"] == 3
    # The empty client keeps its model; the others get the new, left out or not.
    kept = kept.unsafe_gather()
    np.testing.assert_array_equal(kept.version, [0, 4, 4, 4])
    for i, model in enumerate((first, want, want, want)):
        own = jax.tree.map(lambda x, i=i: x[i], kept.params)
        np.testing.assert_array_equal(flat(own), flat(model.params))

    still, metrics, _ = step(state, subset(spoiled, ids[2]), key, sent)  # nobody
    jax.tree.map(np.testing.assert_array_equal, still, state)  # nor a new version
    assert (metrics["train_loss"], metrics["staleness"]) == (0, 0)
    alone = subset(spoiled, np.array([0, 0, 2, 0]))
    still, metrics, _ = step(state, alone, key, sent)
    np.testing.assert_array_equal(flat(still.params), flat(state.params))
    assert np.isnan(metrics["train_loss"])
    after, metrics, _ = jax.jit(refuse.step)(state, spoiled, key, sent)
    assert np.isnan(flat(after.params)).all()
    assert np.isnan(metrics["train_loss"])


def test_keeps_dtypes():
    batches = fad.local.Batches(
        {"y": jnp.ones((2, 1, 1), jnp.bfloat16)},
        jnp.ones((2, 1, 1), bool),
        jnp.arange(2),
    )
    algorithm = fedbuff(
        lambda params, examples, key: (params - examples["y"]) ** 2,
        lambda key: jnp.zeros((), jnp.bfloat16),
        client=optax.sgd(0.1),
        random_loss=True,
    )
    state = algorithm.init(jax.random.key(0))
    sent = fad.AtClients(jax.tree.map(lambda x: jnp.stack([x] * 2), state))
    after, _, kept = algorithm.step(
        state, fad.AtClients(batches), jax.random.key(0), sent
    )
    assert after.params.dtype == kept.unsafe_gather().params.dtype == jnp.bfloat16
    assert after.version.dtype == kept.unsafe_gather().version.dtype == jnp.int32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
        ({"server_lr": -1.0}, r"server_lr: expected in \(0, inf\), got -1.0"),
        ({"exponent": -0.5}, r"exponent: expected in \[0, inf\), got -0.5"),
        ({"max_staleness": -1}, r"max_staleness: expected in \[0, inf\), got -1"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
    assert Config(max_staleness=0).max_staleness == 0
