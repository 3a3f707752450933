"""FedExP against NumPy, and where it is FedAvg."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algorithms.fedexp import Config, fedexp
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


def build(client_lr=CLIENT_LR, **options):
    return fedexp(loss, init_params, client=optax.sgd(client_lr), **options)


def by_hand(xp, federation, rounds, *, lr=CLIENT_LR, eps=1e-3, uniform=False):
    p, before, steps = first_params(), None, []
    for _ in range(rounds):
        deltas, weights = updates(xp, federation, p, lr=lr)
        weights = (weights > 0) * 1.0 if uniform else weights
        d = mean(deltas, weights)
        ratio = mean([u @ u for u in deltas], weights) / (2 * (d @ d + eps))
        steps.append(xp.maximum(1.0, ratio))
        before, p = p, p + steps[-1] * d
    return p, before, steps


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_equals_numpy(x64, federation, weighting):
    state, rows = run(build(weighting=weighting), federation, 10)
    uniform = weighting == "uniform"
    p, before, steps = by_hand(np, federation, 10, uniform=uniform)
    np.testing.assert_allclose(flat(state.iterate), p, rtol=1e-10)
    np.testing.assert_allclose(flat(state.params), (p + before) / 2, rtol=1e-10)
    np.testing.assert_allclose([r["server_lr"] for r in rows], steps, rtol=1e-10)
    assert max(steps) > 1.2


def test_judges_the_last_iterate_when_asked(x64, federation):
    state, _ = run(build(average_last=False), federation, 3)
    np.testing.assert_array_equal(flat(state.params), flat(state.iterate))
    other, _ = run(build(), federation, 3)
    np.testing.assert_allclose(flat(other.iterate), flat(state.iterate), rtol=1e-14)


def test_a_large_eps_makes_it_fedavg(x64, federation):
    equals_fedavg(build(eps=1e9, average_last=False), federation, server_lr=1.0)


def test_one_client_takes_the_shortest_step(x64, federation):
    alone = federation._replace(cohort=jax.tree.map(lambda a: a[3:], federation.cohort))
    _, rows = run(build(), alone, 2)
    assert [r["server_lr"] for r in rows] == [1.0, 1.0]


def test_differentiates_in_the_client_step(x64, federation):
    def by_fad(lr):
        algorithm = build(client_lr=lr, average_last=False)
        return loss_after(algorithm, federation)

    def plainly(lr):
        return pooled(jnp, federation, by_hand(jnp, federation, 3, lr=lr)[0])

    equal_gradients(by_fad, plainly, 0.2)


def test_hard_data_and_sweeps(x64, federation):
    survives_hard_data(build(), federation)
    sweeps(build(), federation, jnp.array([0.1, 3.0]), "lr")


def test_sends_one_number_more_than_fedavg(federation):
    sent = cost(build(), federation)
    # The update, its squared norm, the weight, and the loss that is shown.
    assert (sent.rounds, sent.bytes_down, sent.bytes_up) == (1, MODEL, MODEL + 4 * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, r"eps: expected in \(0, inf\), got 0.0"),
        ({"server": "adam"}, 'server: expected "sgd", the step is FedExP\'s'),
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
