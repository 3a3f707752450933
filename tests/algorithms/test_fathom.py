"""FATHOM against NumPy: what is learned, and how masks realise it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algorithms.fathom import Config, Work, fathom
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

ALL = Work(lr=CLIENT_LR, epochs=1.0, batch=5.0)  # what the cohort's batches hold
LESS = Work(lr=CLIENT_LR, epochs=0.9, batch=3.6)


def build(start=LESS, **options):
    options = {"server": optax.sgd(1.0), "server_lr": 0.5, "rate": 0.1} | options
    return fathom(loss, init_params, client=optax.sgd, start=start, **options)


def cosine(xp, a, b):
    return a @ b / xp.sqrt((a @ a) * (b @ b))


def client(xp, federation, p, x, y, lr, *, work, round_up):
    """One client's update and its least cosine, on its reduced batches."""
    own, least, width = p, 1.0, federation.batch
    batch = round(work.batch)
    steps = len(x) * work.epochs / batch
    steps = max(math.ceil(steps) if round_up else math.floor(steps), 1)
    for start in range(0, len(x), width)[:steps]:
        rows = slice(start, min(start + batch, start + width))
        g = gradient(xp, own, x[rows], y[rows])
        own = own - lr * g
        least = xp.minimum(least, cosine(xp, g, p - own))
    return own - p, least


def by_hand(
    xp,
    federation,
    rounds,
    *,
    start=LESS,
    rate=0.1,
    max_lr=1.0,
    round_up=False,
    server=False,
    discrete=None,
):
    """``discrete`` are the works whose passes and batch sizes are realised."""
    p, smooth, work, log_lr = first_params(), xp.zeros(4), start, 0
    max_epochs, max_batch = 1.0, float(federation.batch)
    weights = np.array([float(len(x)) for x, _ in federation.clients])
    works = []
    for t in range(rounds):
        works.append(work)
        lr, real = work.lr, discrete[t] if discrete else work
        found = [
            client(xp, federation, p, x, y, lr, work=real, round_up=round_up)
            for x, y in federation.clients
        ]
        d = mean([u for u, _ in found], weights)
        G = -mean([c for _, c in found], weights)
        H = -cosine(xp, d, smooth) if t else 0.0
        smooth = smooth / 2 + d / 2
        if server:
            log_lr = log_lr - rate * H
        else:
            by = (-rate * H, -rate * (H + G), 10 * rate * G)
            grown = (v * xp.exp(e) for v, e in zip(work, by, strict=True))
            most = (max_lr, max_epochs, max_batch)
            lr, epochs, batch = map(xp.minimum, grown, most)
            work = Work(lr, epochs, xp.maximum(batch, 1.0))
        p = p + 0.5 * xp.exp(log_lr) * d
    return p, works, work, np.log(0.5) + log_lr


@pytest.mark.parametrize("round_up", [False, True])
@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_equals_numpy(x64, federation, rate, round_up):
    options = {"rate": rate, "round_up": round_up}
    state, rows = run(build(**options), federation, 10)
    p, works, work, _ = by_hand(np, federation, 10, **options)
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    np.testing.assert_allclose(state.work, work, rtol=1e-10)
    used = [[r[f"client_{name}"] for name in Work._fields] for r in rows]
    np.testing.assert_allclose(used, works, rtol=1e-10)
    assert abs(work.lr - CLIENT_LR) > 1e-4
    assert round(work.batch) < round(LESS.batch)


def test_what_is_learned_is_bounded_and_turns_round_at_once(x64, federation):
    """What would grow beyond a bound is as if it had never been there."""
    algorithm = build(Work(0.012, 5.0, 30.0), max_client_lr=0.012)
    state, rows = run(algorithm, federation, 4)
    start = Work(0.012, 1.0, 5.0)
    p, works, work, _ = by_hand(np, federation, 4, start=start, max_lr=0.012)
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    np.testing.assert_allclose(state.work, work, rtol=1e-10)
    assert tuple(rows[0][f"client_{name}"] for name in Work._fields) == start
    assert all(w.epochs <= 1 and 1 <= w.batch <= 5 for w in works)
    assert all(float(r["client_lr"]) == 0.012 for r in rows)

    away = jax.tree.map(jnp.negative, state.smooth)  # the next update turns back
    after, _ = run(algorithm, federation, 1, state._replace(smooth=away))
    assert after.work.lr < 0.95 * 0.012


def test_the_batch_stays_at_least_one_row(x64, federation):
    """Agreement makes batches small, and no smaller than what a client takes."""
    state, _ = run(build(ALL._replace(lr=0.01), rate=0.3), federation, 1)
    assert state.work.batch == state.work.epochs == 1


def test_agreement_lengthens_the_client_step_and_makes_batches_small(x64, federation):
    state, rows = run(build(ALL._replace(lr=0.01)), federation, 5)
    assert state.work.lr > 0.01 * np.exp(0.3)
    assert state.work.batch < 2
    assert rows[-1]["hypergradient"] < -0.9


def test_learns_the_servers_step_in_log_space(x64, federation):
    state, rows = run(build(ALL, learn="server"), federation, 10)
    p, _, _, log_lr = by_hand(np, federation, 10, start=ALL, server=True, round_up=True)
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    np.testing.assert_allclose(state.log_lr, log_lr, rtol=1e-10)
    np.testing.assert_allclose(rows[-1]["server_lr"], np.exp(log_lr), rtol=1e-10)
    np.testing.assert_array_equal(state.work, ALL)


@pytest.mark.parametrize("learn", ["client", "server"])
def test_without_a_rate_it_is_fedavg(x64, federation, learn):
    """Rounding down would spare clients the batches they cannot fill."""
    algorithm = build(ALL, rate=0.0, round_up=True, learn=learn)
    equals_fedavg(algorithm, federation, server_lr=0.5)


def test_passes_count_the_batches_of_one_epoch(x64, federation):
    """A cohort of two passes at half the epochs is the cohort of one."""
    once = federation.cohort.unsafe_gather()
    twice = jax.tree.map(
        lambda a: jnp.concatenate([a, a], axis=1), (once.examples, once.mask)
    )
    cohort = type(federation.cohort)(once._replace(examples=twice[0], mask=twice[1]))
    longer = federation._replace(cohort=cohort)
    options = {"start": ALL, "rate": 0.0, "round_up": True}
    a, _ = run(build(**options), federation, 2)
    b, _ = run(build(passes=2.0, **options), longer, 2)
    np.testing.assert_allclose(flat(a.params), flat(b.params), rtol=1e-13)
    c, _ = run(
        build(**options | {"start": ALL._replace(epochs=2.0)}, passes=2.0), longer, 2
    )
    assert np.abs(flat(c.params) - flat(b.params)).max() > 1e-3


def test_differentiates_in_the_client_step(x64, federation):
    """The first client step, which the two rounds after it inherit.

    Passes and batch sizes are made whole, so there the derivative is zero.
    """
    algorithm = build()
    _, works, _, _ = by_hand(np, federation, 3)

    def by_fad(lr):
        def start(state):
            return state._replace(work=state.work._replace(lr=lr))

        return loss_after(algorithm, federation, start)

    def plainly(lr):
        start = LESS._replace(lr=lr)
        p, *_ = by_hand(jnp, federation, 3, start=start, discrete=works)
        return pooled(jnp, federation, p)

    equal_gradients(by_fad, plainly, CLIENT_LR)


@pytest.mark.parametrize("learn", ["client", "server"])
def test_hard_data(x64, federation, learn):
    survives_hard_data(build(learn=learn), federation)


def test_sweeps(x64, federation):
    sweeps(build(learn="server"), federation, jnp.log(jnp.array([0.1, 3.0])), "log_lr")


def test_sends_three_numbers_down_and_one_up(federation):
    sent = cost(build(), federation)
    # Beside FedAvg's update, weight and loss the least cosine.
    assert (sent.rounds, sent.bytes_up) == (1, MODEL + 4 * 3)
    assert sent.bytes_down == MODEL + 4 * 3


def test_a_random_loss_gets_a_key_of_its_client(x64, federation):
    def noisy(params, examples, key):
        return loss(params, examples) * jax.random.uniform(key, examples["y"].shape)

    options = {"server": optax.sgd(1.0), "client": optax.sgd, "start": ALL}
    algorithm = fathom(noisy, init_params, random_loss=True, **options)
    state, _ = run(algorithm, federation, 1)
    turned = federation._replace(
        cohort=jax.tree.map(lambda a: a[::-1], federation.cohort)
    )
    again, _ = run(algorithm, turned, 1)
    np.testing.assert_allclose(flat(state.params), flat(again.params), rtol=1e-12)
    other, _ = algorithm.step(
        algorithm.init(jax.random.key(0)), federation.cohort, jax.random.key(4)
    )
    assert not np.allclose(flat(other.params), flat(state.params))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1.0}, r"rate: expected in \[0, inf\), got -1.0"),
        ({"batch": 0.5}, r"batch: expected in \[1, inf\), got 0.5"),
        ({"epochs": 2.0}, r"passes: expected in \[2.0, inf\), got 1.0"),
        ({"client_lr": 2.0}, r"max_client_lr: expected in \[2.0, inf\], got 1.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
