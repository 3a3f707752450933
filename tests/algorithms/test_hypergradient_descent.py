"""Hypergradient descent, its bias, and what the tests of its kin share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.fedavg import fedavg
from algorithms.hypergradient_descent import Config, hypergradient_descent
from tests.algorithms.conftest import init_params, loss

pytestmark = pytest.mark.once

CLIENT_LR = 0.2
MODEL = 4 * 4  # bytes: three weights and a bias in float32


# A second implementation, in NumPy (or, for derivatives, jax.numpy) on vectors [4].


def flat(params):
    """The vector of the params of tests/algorithms/conftest.py."""
    return np.append(np.asarray(params["w"]), np.asarray(params["b"]))


def first_params():
    """Where every algorithm here starts, inside of ``jit`` too."""
    with jax.ensure_compile_time_eval():
        return flat(init_params(jax.random.key(0)))


def gradient(xp, p, x, y):
    """The gradient of the mean of conftest's loss over rows, by hand."""
    z = xp.tanh(x @ p[:3] + p[3])
    r = 2 * (z - y) * (1 - z**2) / len(y)
    return xp.concatenate([r @ x, xp.sum(r)[None]])


def updates(xp, federation, p, *, lr=CLIENT_LR, momentum=0.0):
    """The clients' updates after one pass of SGD, and their numbers of rows."""
    found = []
    for x, y in federation.clients:
        own, memory = p, xp.zeros(4)
        for start in range(0, len(x), federation.batch):
            rows = slice(start, start + federation.batch)
            memory = gradient(xp, own, x[rows], y[rows]) + momentum * memory
            own = own - lr * memory
        found.append(own - p)
    return found, np.array([float(len(x)) for x, _ in federation.clients])


def mean(values, weights) -> Any:
    """A weighted mean over clients."""
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def pooled(xp, federation, p):
    """The mean loss over all rows."""
    x = np.concatenate([x for x, _ in federation.clients])
    y = np.concatenate([y for _, y in federation.clients])
    return xp.mean((xp.tanh(x @ p[:3] + p[3]) - y) ** 2)


def run(algorithm, federation, rounds, state=None):
    """The state after some rounds and the metrics of each."""
    state = algorithm.init(jax.random.key(0)) if state is None else state
    step, rows = jax.jit(algorithm.step), []
    for t in range(rounds):
        state, metrics = step(state, federation.cohort, jax.random.key(t))
        rows.append(metrics)
    return state, rows


def loss_after(algorithm, federation, start=lambda state: state):
    """The pooled loss after three rounds from ``start(state)``."""

    def one_round(state, _):
        return algorithm.step(state, federation.cohort, jax.random.key(0))[0], None

    state = start(algorithm.init(jax.random.key(0)))
    state, _ = jax.lax.scan(one_round, state, None, length=3)
    p = jnp.append(state.params["w"], state.params["b"])
    return pooled(jnp, federation, p)


def equal_gradients(by_fad, plainly, at):
    """Assert that the gradient through fad is that of plain JAX."""
    got, want = (jax.jit(jax.grad(f))(at) for f in (by_fad, plainly))
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert want != 0


def equals_fedavg(algorithm, federation, *, server_lr, client=None):
    """Assert that an algorithm takes FedAvg's steps."""
    plain = fedavg(
        loss,
        init_params,
        server=optax.sgd(1.0),
        client=client or optax.sgd(CLIENT_LR),
        server_lr=server_lr,
    )
    want, rows = run(plain, federation, 4)
    got, own = run(algorithm, federation, 4)
    np.testing.assert_allclose(flat(got.params), flat(want.params), rtol=1e-14)
    for a, b in zip(own, rows, strict=True):
        np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-14)


def survives_hard_data(algorithm, federation):
    """Assert what holds with one client, with none at all, and with a NaN."""
    step = jax.jit(algorithm.step)
    state, _ = run(algorithm, federation, 2)
    one = jax.tree.map(lambda a: a[3:], federation.cohort)
    after, metrics = step(state, one, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
    assert not np.array_equal(flat(after.params), flat(state.params))

    batches = federation.cohort.unsafe_gather()
    nobody = fad.AtClients(batches._replace(mask=jnp.zeros_like(batches.mask)))
    after, metrics = step(state, nobody, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
    still = "iterate" if hasattr(state, "iterate") else "params"
    np.testing.assert_array_equal(
        flat(getattr(after, still)), flat(getattr(state, still))
    )
    for name in ("lr", "log_lr", "client_scale", "work"):
        assert jax.tree.all(
            jax.tree.map(jnp.equal, getattr(after, name, 0), getattr(state, name, 0))
        )

    y = batches.examples["y"].at[2, 0, 0].set(jnp.nan)
    spoiled = batches._replace(examples={**batches.examples, "y": y})
    after, metrics = step(state, fad.AtClients(spoiled), jax.random.key(0))
    assert np.isnan(metrics["train_loss"])  # which ends an experiment
    assert np.isnan(flat(after.params)).all()


def sweeps(algorithm, federation, starts, leaf):
    """Assert that ``vmap`` over starting steps is those runs one by one."""
    state = algorithm.init(jax.random.key(0))
    axes = jax.tree.map(lambda _: None, state)._replace(**{leaf: 0})

    def two_rounds(state):
        metrics = {}
        for t in range(2):
            state, metrics = algorithm.step(state, federation.cohort, jax.random.key(t))
        return state.params, metrics

    got, metrics = jax.jit(jax.vmap(two_rounds, (axes,)))(
        state._replace(**{leaf: starts})
    )
    for i, start in enumerate(starts):
        params, alone = jax.jit(two_rounds)(state._replace(**{leaf: start}))
        np.testing.assert_allclose(got["w"][i], params["w"], rtol=1e-12)
        np.testing.assert_allclose(
            metrics["server_lr"][i], alone["server_lr"], rtol=1e-12
        )


def cost(algorithm, federation):
    """What a step sends, per client."""
    state = algorithm.init(jax.random.key(0))
    return fad.plan(algorithm.step)(state, federation.cohort, jax.random.key(0)).cost()


# Hypergradient descent itself.


def build(**options):
    options = {"server": optax.sgd(1.0), "server_lr": 0.5, "rate": 0.3} | options
    return hypergradient_descent(
        loss, init_params, client=optax.sgd(CLIENT_LR), **options
    )


def by_hand(xp, federation, rounds, lr, *, rule, rate, momentum=0.0):
    p, d, proxies = first_params(), xp.zeros(4), []
    for _ in range(rounds):
        g = -mean(*updates(xp, federation, p))
        h = g @ d
        proxies.append(h)
        if rule == "additive":
            lr = lr - rate * h
        elif len(proxies) > 1:
            lr = lr * (1 - rate * h / xp.sqrt((g @ g) * (d @ d)))
        d = -g + momentum * d
        p = p + lr * d
    return p, lr, proxies


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_equals_numpy(x64, federation, rule, momentum):
    server = optax.sgd(1.0, momentum=momentum or None)
    state, rows = run(build(rule=rule, server=server), federation, 10)
    p, lr, proxies = by_hand(
        np, federation, 10, 0.5, rule=rule, rate=0.3, momentum=momentum
    )
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    np.testing.assert_allclose(state.lr, lr, rtol=1e-10)
    found = [r["hypergradient"] for r in rows]
    np.testing.assert_allclose(found, proxies, rtol=1e-10, atol=1e-15)
    assert abs(lr - 0.5) > 1e-3


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_without_a_rate_it_is_fedavg(x64, federation, rule):
    equals_fedavg(build(rule=rule, rate=0.0), federation, server_lr=0.5)


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_differentiates_in_the_starting_step(x64, federation, rule):
    algorithm = build(rule=rule)

    def by_fad(lr):
        return loss_after(algorithm, federation, lambda s: s._replace(lr=lr))

    def plainly(lr):
        p, _, _ = by_hand(jnp, federation, 3, lr, rule=rule, rate=0.3)
        return pooled(jnp, federation, p)

    equal_gradients(by_fad, plainly, 0.5)


def test_hard_data_and_sweeps(x64, federation):
    survives_hard_data(build(), federation)
    sweeps(build(), federation, jnp.array([0.1, 3.0]), "lr")


def test_sends_what_fedavg_sends(federation):
    sent = cost(build(), federation)
    assert (sent.rounds, sent.bytes_down, sent.bytes_up) == (1, MODEL, MODEL + 4 * 2)


def test_more_agreement_lengthens_the_step(federation):
    state, rows = run(build(server_lr=0.05, rate=0.02), federation, 8)
    assert rows[-1]["hypergradient"] < 0
    assert state.lr > 0.05 * 1.02**4


# The bias, where everything has a closed form.


def quadratics(steps):
    """A federation of unequal quadratics in y, at x = 0, as a cohort."""
    data = fad.data.Quadratics.random(5, lower_size=4, upper_size=1, seed=0)

    def rows(array):  # [n, *s] -> [n, steps, 1, *s]
        array = jnp.asarray(array)[:, None, None]
        return jnp.broadcast_to(array, (5, steps, 1, *array.shape[3:]))

    cohort = fad.local.Batches(
        jax.tree.map(rows, data.clients), jnp.ones((5, steps, 1), bool), jnp.arange(5)
    )
    return data, fad.AtClients(cohort)


def lower(y, examples):
    return jax.vmap(lambda own: own.lower(jnp.zeros(1), y))(examples)


def proxy_and_truth(steps, y0, client_lr=0.5, server_lr=0.7):
    """The second round's proxy, its closed form, and <grad F(y_1), d>."""
    data, cohort = quadratics(steps)
    algorithm = hypergradient_descent(
        lower,
        lambda key: jnp.asarray(y0),
        server=optax.sgd(1.0),
        client=optax.sgd(client_lr),
        server_lr=server_lr,
        rate=0.0,
    )
    state = algorithm.init(jax.random.key(0))
    state, _ = algorithm.step(state, cohort, jax.random.key(0))
    _, metrics = algorithm.step(state, cohort, jax.random.key(1))

    def update(y):
        after = data.fedavg(np.zeros(1), y, rounds=1, steps=steps, lr=client_lr)
        return after - y

    d = update(y0)
    y1 = y0 + server_lr * d
    truth = (data.mean.A @ y1 + data.mean.a) @ d
    return float(metrics["hypergradient"]), -update(y1) @ d, truth


def test_one_local_step_has_no_bias_but_a_factor(x64):
    proxy, closed, truth = proxy_and_truth(1, np.ones(4))
    np.testing.assert_allclose(proxy, closed, rtol=1e-10)
    np.testing.assert_allclose(proxy, 0.5 * truth, rtol=1e-10)


def test_local_steps_bias_the_proxy(x64):
    """With drift it is no multiple of the hypergradient, and its sign can be wrong."""
    data, _ = quadratics(1)
    zero = np.zeros(1)
    stays = data.fedavg_fixed_point(zero, steps=10, lr=0.5)
    scales = []
    for y0 in (np.ones(4), 3 * np.ones(4), -np.ones(4)):
        proxy, closed, truth = proxy_and_truth(10, y0)
        np.testing.assert_allclose(proxy, closed, rtol=1e-10)
        scales.append(proxy / truth)
    assert max(scales) / min(scales) > 4  # 1.24 to 6.0 of the hypergradient

    optimum = data.solution(zero)
    assert np.linalg.norm(optimum - stays) > 0.1
    # From the optimum every step climbs; the proxy takes it for a descent.
    proxy, closed, truth = proxy_and_truth(10, optimum, server_lr=0.3)
    np.testing.assert_allclose(proxy, closed, rtol=1e-10)
    assert truth > 0 > proxy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -0.1}, r"rate: expected in \[0, 1\), got -0.1"),
        ({"rate": 1.0}, r"rate: expected in \[0, 1\), got 1.0"),
        ({"server_lr": 0.0}, r"server_lr: expected in \(0, inf\), got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
    assert Config(rule="additive", rate=2.0).rate == 2.0
