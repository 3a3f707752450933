"""FedHyper's global and local steps against NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algorithms.fedhyper import Config, fedhyper
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_hypergradient_descent import (
    CLIENT_LR,
    MODEL,
    cost,
    equal_gradients,
    equals_fedavg,
    first_params,
    flat,
    loss_after,
    mean,
    pooled,
    run,
    survives_hard_data,
    sweeps,
    updates,
)

pytestmark = pytest.mark.once


def build(**given):
    options: Any = {"server_lr": 0.5, "rate": 2.0} | given
    return fedhyper(
        loss, init_params, client=lambda m: optax.sgd(m * CLIENT_LR), **options
    )


def by_hand(xp, federation, rounds, lr, *, bound=3.0, rate=2.0, scheduler="global"):
    p, past, scale = first_params(), None, 1.0
    lrs, scales = [], []
    for _ in range(rounds):
        scales.append(scale)
        d = mean(*updates(xp, federation, p, lr=scale * CLIENT_LR))
        if past is not None and scheduler == "global":
            lr = xp.clip(lr + rate * (d @ past), 1 / bound, bound)
        elif past is not None:
            scale = xp.clip(scale + rate * (d @ past), 1 / bound, bound)
        past, p = d, p + lr * d
        lrs.append(lr)
    return p, lrs, scales


@pytest.mark.parametrize("bound", [1.2, 3.0, np.inf])
@pytest.mark.parametrize("scheduler", ["global", "local"])
def test_equals_numpy(x64, federation, scheduler, bound):
    state, rows = run(build(bound=bound, scheduler=scheduler), federation, 10)
    p, lrs, scales = by_hand(np, federation, 10, 0.5, bound=bound, scheduler=scheduler)
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    np.testing.assert_allclose([r["server_lr"] for r in rows], lrs, rtol=1e-10)
    np.testing.assert_allclose([r["client_scale"] for r in rows], scales, rtol=1e-10)
    adapted = lrs if scheduler == "global" else scales
    assert adapted[-1] != adapted[0]
    assert adapted[-1] <= bound


def test_a_start_outside_is_clipped_at_the_second_round(x64, federation):
    _, rows = run(build(server_lr=0.01, rate=0.0), federation, 2)
    first, second = (r["server_lr"] for r in rows)
    assert first == 0.01
    assert second == 1 / 3


@pytest.mark.parametrize("scheduler", ["global", "local"])
def test_without_a_rate_it_is_fedavg(x64, federation, scheduler):
    algorithm = build(rate=0.0, scheduler=scheduler)
    equals_fedavg(algorithm, federation, server_lr=0.5)


@pytest.mark.parametrize("leaf", ["lr", "client_scale"])
def test_differentiates_in_the_starting_steps(x64, federation, leaf):
    scheduler = "global" if leaf == "lr" else "local"
    algorithm = build(scheduler=scheduler)

    def by_fad(start):
        return loss_after(algorithm, federation, lambda s: s._replace(**{leaf: start}))

    def plainly(start):
        lr, scale = (start, 1.0) if leaf == "lr" else (0.5, start)
        p = by_hand_from(jnp, federation, lr, scale, scheduler)
        return pooled(jnp, federation, p)

    equal_gradients(by_fad, plainly, 0.9)


def by_hand_from(xp, federation, lr, scale, scheduler):
    """Three rounds, within the bounds, from any two steps."""
    p, past = first_params(), None
    for _ in range(3):
        d = mean(*updates(xp, federation, p, lr=scale * CLIENT_LR))
        if past is not None and scheduler == "global":
            lr = lr + 2.0 * (d @ past)
        elif past is not None:
            scale = scale + 2.0 * (d @ past)
        past, p = d, p + lr * d
    return p


@pytest.mark.parametrize("scheduler", ["global", "local"])
def test_hard_data(x64, federation, scheduler):
    survives_hard_data(build(scheduler=scheduler), federation)


@pytest.mark.parametrize("leaf", ["lr", "client_scale"])
def test_sweeps(x64, federation, leaf):
    scheduler = "global" if leaf == "lr" else "local"
    sweeps(build(scheduler=scheduler), federation, jnp.array([0.1, 2.0]), leaf)


def test_sends_what_fedavg_sends_and_the_client_step(federation):
    sent = cost(build(), federation)
    assert (sent.rounds, sent.bytes_up) == (1, MODEL + 4 * 2)
    assert sent.bytes_down == MODEL + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1.0}, r"rate: expected in \[0, inf\), got -1.0"),
        ({"bound": 1.0}, r"bound: expected in \(1, inf\], got 1.0"),
        ({"server": "yogi"}, 'server: expected "sgd", the step is FedHyper\'s'),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
