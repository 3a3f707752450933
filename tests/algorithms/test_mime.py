"""Mime and MimeLite against NumPy, server momentum, and FedAvg's drift."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms._optimizers import server_optimizer
from algorithms.fedavg import fedavg
from algorithms.mime import Config, mime
from tests.algorithms.classical import (
    distances,
    fedavg_stays,
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
    gradient,
    loss_after,
    pooled,
)

pytestmark = pytest.mark.once

MOMENTS: dict[str, Any] = {"b1": 0.8, "b2": 0.95, "eps": 1e-2}


def make(base: Any = "momentum", **options: Any):
    options = {"client_lr": CLIENT_LR, "server_lr": 0.7} | options
    return mime(loss, init_params, base=server_optimizer(base, **MOMENTS), **options)


def update(xp, base, g, state):
    """U and V: what is subtracted, and the statistics after ``g``."""
    b1, b2, eps = MOMENTS.values()
    m, v, t = state
    if base == "momentum":
        m = g + b1 * m
        return m, (m, v, t)
    m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, t + 1
    return m / (1 - b1**t) / (xp.sqrt(v / (1 - b2**t)) + eps), (m, v, t)


def one_client(xp, rows, batch, x, state, c, *, base, lite, lr):
    """Where a client's steps end, and the mean loss on the way."""
    y, seen = x, 0.0
    features, targets = rows
    for start in range(0, len(features), batch):
        own = features[start : start + batch], targets[start : start + batch]
        seen += xp.sum((xp.tanh(own[0] @ y[:3] + y[3]) - own[1]) ** 2)
        g = gradient(xp, y, *own)
        if not lite:
            g = g - gradient(xp, x, *own) + c
        y = y - lr * update(xp, base, g, state)[0]
    return y, seen / len(features)


def by_hand(xp, federation, ids, *, base="momentum", lite=False, lr=CLIENT_LR):
    """The model, the statistics and the losses after rounds with some clients."""
    x, state, losses = first_params(), (xp.zeros(4), xp.zeros(4), 0), []
    for some in ids:
        rows = [federation.clients[i] for i in some if len(federation.clients[i][0])]
        c = sum(gradient(xp, x, *own) for own in rows) / len(rows)
        options = {"base": base, "lite": lite, "lr": lr}
        ends, seen = zip(
            *(
                one_client(xp, own, federation.batch, x, state, c, **options)
                for own in rows
            ),
            strict=True,
        )
        losses.append(sum(seen) / len(rows))
        x = x + 0.7 * (sum(ends) / len(rows) - x)
        state = update(xp, base, c, state)[1]
    return x, state, losses


@pytest.mark.parametrize(
    ("base", "lite"), [("momentum", False), ("adam", False), ("adam", True)]
)
def test_equals_numpy(x64, federation, base, lite):
    ids = partial_cohorts(4, 20, 2)
    state, _, rows = run_partially(make(base, lite=lite), federation.cohort, ids)
    x, (m, *_), losses = by_hand(np, federation, ids, base=base, lite=lite)
    np.testing.assert_allclose(flat(state.params), x, rtol=1e-10)
    trace = optax.tree.get(state.server, "trace" if base == "momentum" else "mu")
    np.testing.assert_allclose(flat(trace), m, rtol=1e-10)
    np.testing.assert_allclose([r["train_loss"] for r in rows], losses, rtol=1e-10)
    assert all(r["excluded_clients"] == 0 for r in rows)


@pytest.mark.parametrize("lite", [False, True])
def test_one_local_step_is_server_momentum(x64, federation, lite):
    batches = federation.cohort.unsafe_gather()
    whole = fad.AtClients(
        batches._replace(
            examples=jax.tree.map(
                lambda a: a.reshape(a.shape[0], 1, -1, *a.shape[3:]), batches.examples
            ),
            mask=batches.mask.reshape(len(batches.mask), 1, -1),
        )
    )
    plain = fedavg(
        loss,
        init_params,
        server=optax.sgd(1.0, momentum=MOMENTS["b1"]),
        client=optax.sgd(CLIENT_LR),
        weighting="uniform",
    )
    ids = partial_cohorts(4, 5, 3)
    want, _, _ = run_partially(plain, whole, ids)
    got, _, _ = run_partially(make(lite=lite, server_lr=1.0), whole, ids)
    np.testing.assert_allclose(flat(got.params), flat(want.params), rtol=1e-12)


def fedavg_bias(problem, lr, steps):
    """How far from the optimum FedAvg stays."""
    return np.linalg.norm(fedavg_stays(problem, lr, steps) - problem.optimum)


def test_drifts_less_than_fedavg(x64):
    """With ten local steps Mime goes to the optimum; MimeLite is off by less."""
    problem, lr = quadratic(), 0.2

    def distance(rounds, base=None, **options):
        algorithm = mime(
            quadratic_loss,
            lambda key: jnp.zeros(3),
            base=optax.sgd(1.0, momentum=base),
            **options,
        )
        return distances(algorithm, problem, rounds)

    bias = fedavg_bias(problem, lr, 10)
    assert bias > 0.49
    found = distance(30, client_lr=lr)
    assert found[-1] < 1e-12
    assert (found[1:12] < 0.5 * found[:11]).all()
    # Without momentum MimeLite is FedAvg; the paper's momentum has 1 - b1 in the step.
    lite = distance(60, client_lr=lr, lite=True)
    np.testing.assert_allclose(lite[-1], bias, rtol=1e-8)
    own = {"base": 0.8, "client_lr": lr * (1 - 0.8)}
    assert distance(150, **own)[-1] < 1e-6
    lite = distance(150, **own, lite=True)[-1]
    assert 0.01 < lite < 0.04  # FedAvg with the same two steps: 0.49 and 0.10
    assert lite < fedavg_bias(problem, own["client_lr"], 10) / 4


def test_differentiates_in_the_client_step(x64, federation):
    few = federation._replace(
        cohort=subset(federation.cohort, np.array([0, 1, 2])),
        clients=federation.clients[:3],
    )

    def by_fad(lr):
        return loss_after(make(client_lr=lr), few)

    def plainly(lr):
        x, _, _ = by_hand(jnp, few, [range(3)] * 3, lr=lr)
        return pooled(jnp, few, x)

    equal_gradients(by_fad, plainly, CLIENT_LR)


def test_communication(federation):
    """Mime: x, then s and c, for a gradient and an update; MimeLite in one round."""
    for lite, rounds, kept in ((False, 2, MODEL + 5), (True, 1, 0)):
        algorithm = make(lite=lite)
        args = algorithm.init(jax.random.key(0)), federation.cohort, jax.random.key(0)
        cost = fad.plan(algorithm.step)(*args).cost()
        assert cost.rounds == rounds
        assert cost.bytes_down == (2 if lite else 3) * MODEL
        # Two means and the loss with their weights, and who counts or is left out.
        assert cost.bytes_up == 2 * (MODEL + 4) + 3 * 4 + 1
        assert cost.client_state_bytes == kept
        fad.check(algorithm.step)(*args)


def spoil(cohort, client):
    """A NaN in one of a client's rows."""
    batches = cohort.unsafe_gather()
    y = batches.examples["y"].at[client, 0, 0].set(jnp.nan)
    return fad.AtClients(batches._replace(examples={**batches.examples, "y": y}))


@pytest.mark.parametrize("lite", [False, True])
def test_hard_data(x64, federation, lite):
    refuse, exclude = (make(lite=lite, nonfinite=n) for n in ("refuse", "exclude"))
    key, spoiled = jax.random.key(0), spoil(federation.cohort, 2)
    state, step = refuse.init(key), jax.jit(exclude.step)
    after, metrics = step(state, spoiled, key)
    # As without that client, which leaves an empty one in its place.
    ids = np.array([0, 1, 0, 3])
    want, others = step(state, subset(federation.cohort, ids), key)
    jax.tree.map(np.testing.assert_array_equal, after, want)
    assert (metrics["excluded_clients"], others["excluded_clients"]) == (1, 0)
    assert metrics["train_loss"] == others["train_loss"]
    assert np.abs(flat(after.params) - flat(state.params)).max() > 1e-3
    # All are empty: nothing moves. The only one is left out: there is no loss.
    still, none = step(state, subset(federation.cohort, np.zeros(4, int)), key)
    np.testing.assert_array_equal(flat(still.params), flat(state.params))
    assert (none["train_loss"], none["excluded_clients"]) == (0, 0)
    still, none = step(state, subset(spoiled, np.array([0, 0, 2, 0])), key)
    np.testing.assert_array_equal(flat(still.params), flat(state.params))
    assert np.isnan(none["train_loss"])
    after, metrics = jax.jit(refuse.step)(state, subset(spoiled, np.array([2, 3])), key)
    assert np.isnan(flat(after.params)).all()
    assert np.isnan(metrics["train_loss"])


def test_a_client_that_diverges_is_left_out(x64, federation):
    """Its gradient is finite, its update is not."""
    batches = federation.cohort.unsafe_gather()
    scale = jnp.where(batches.client == 3, 1e200, 1.0)

    def steep(params, examples):
        return examples["scale"] * (params["b"] - examples["y"]) ** 2

    shape = batches.mask.shape
    examples = {
        "y": batches.examples["y"],
        "scale": jnp.broadcast_to(scale[:, None, None], shape),
    }
    base = optax.sgd(1.0)
    algorithm = mime(
        steep, init_params, base=base, client_lr=0.1, lite=True, nonfinite="exclude"
    )
    cohort = fad.AtClients(batches._replace(examples=examples))
    key = jax.random.key(0)
    state, metrics = jax.jit(algorithm.step)(algorithm.init(key), cohort, key)
    assert metrics["excluded_clients"] == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))


def test_dtypes_and_a_random_loss_keep():
    """bfloat16 params stay so, and each client draws from its own key."""

    def noisy(params, examples, key):
        return (
            params - examples["y"] + jax.random.normal(key, (1,), params.dtype)
        ) ** 2

    batches = fad.local.Batches(
        {"y": jnp.ones((2, 1, 1), jnp.bfloat16)},
        jnp.ones((2, 1, 1), bool),
        jnp.arange(2),
    )
    algorithm = mime(
        noisy,
        lambda key: jnp.zeros((), jnp.bfloat16),
        base=server_optimizer("adam", **MOMENTS),
        client_lr=0.1,
        random_loss=True,
    )
    key = jax.random.key(0)
    state, step = algorithm.init(key), jax.jit(algorithm.step)
    after, _ = step(state, fad.AtClients(batches), key)
    other, _ = step(state, fad.AtClients(batches), jax.random.key(1))
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
    assert after.params != other.params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
        ({"server_lr": -1.0}, r"server_lr: expected in \(0, inf\), got -1.0"),
        ({"eps": 0.0}, r"eps: expected in \(0, inf\), got 0.0"),
        ({"b1": 1.0}, r"b1: expected in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, r"b2: expected in \[0, 1\), got -0.1"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
