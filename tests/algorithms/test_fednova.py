"""FedNova against NumPy, its coefficients against the paper's closed forms."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algorithms.fednova import Config, fednova
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import leaves_out
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


def build(**options):
    options = {"server": optax.sgd(1.0), "client_lr": CLIENT_LR} | options
    return fednova(loss, init_params, **options)


def closed_form(steps, momentum, damping):
    """Section 4.1: the sum of the coefficients of momentum or of proximal SGD."""
    if momentum:
        past = momentum * (1 - momentum**steps) / (1 - momentum)
        return (steps - past) / (1 - momentum)
    if damping:
        return (1 - (1 - damping) ** steps) / damping
    return steps


def by_hand(xp, federation, rounds, *, lr=CLIENT_LR, momentum=0.0, mu=0.0, steps=False):
    p, taus = first_params(), []
    weights = np.array([float(len(x)) for x, _ in federation.clients])
    for _ in range(rounds):
        mean_steps, norms = [], []
        for x, y in federation.clients:
            own, memory, count = p, xp.zeros(4), 0
            for start in range(0, len(x), federation.batch):
                rows = slice(start, start + federation.batch)
                memory = gradient(xp, own, x[rows], y[rows]) + momentum * memory
                own = own - lr * (memory + mu * (own - p))
                count += 1
            norm = closed_form(count, momentum, lr * mu)
            mean_steps.append((own - p) / norm if count else xp.zeros(4))
            norms.append(count if steps else norm)
        taus.append(mean(norms, weights))
        p = p + 0.8 * taus[-1] * mean(mean_steps, weights)
    return p, taus


@pytest.mark.parametrize(
    ("options", "effective"),
    [
        ({}, "coefficients"),
        ({"momentum": 0.9}, "coefficients"),
        ({"mu": 0.7}, "coefficients"),
        ({"mu": 0.7}, "steps"),
    ],
)
def test_equals_numpy(x64, federation, options, effective):
    algorithm = build(server_lr=0.8, effective=effective, **options)
    state, rows = run(algorithm, federation, 10)
    p, taus = by_hand(np, federation, 10, steps=effective == "steps", **options)
    np.testing.assert_allclose(flat(state.params), p, rtol=1e-10)
    np.testing.assert_allclose([r["effective_steps"] for r in rows], taus, rtol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_coefficients_are_the_way_under_a_gradient_of_one(
    x64, federation, momentum, mu
):
    """Momentum and proximal term together too, which have no form in the paper."""

    def linear(params, examples):
        return params["b"] * jnp.ones_like(examples["y"])

    algorithm = fednova(
        linear,
        init_params,
        server=optax.sgd(1.0),
        client_lr=CLIENT_LR,
        momentum=momentum,
        mu=mu,
    )
    state, rows = run(algorithm, federation, 1)
    np.testing.assert_allclose(
        state.params["b"], -CLIENT_LR * rows[0]["effective_steps"], rtol=1e-12
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_steps_make_it_fedavg(x64, federation, momentum):
    """Clients of 7 and 12 rows, the first's batches cut to as many as the other's."""
    batches = federation.cohort.unsafe_gather()
    mask = batches.mask.at[:, :, 2:].set(False).at[2:].set(True).at[3, :, 4:].set(False)
    mask = mask.at[1].set(False)
    equal = federation._replace(
        cohort=type(federation.cohort)(batches._replace(mask=mask))
    )
    client = optax.sgd(CLIENT_LR, momentum=momentum or None)
    algorithm = build(momentum=momentum, server_lr=0.8)
    equals_fedavg(algorithm, equal, server_lr=0.8, client=client)


def test_unequal_steps_do_not(x64, federation):
    state, _ = run(build(), federation, 2)
    assert np.abs(flat(state.params) - by_fedavg(federation)).max() > 1e-3


def by_fedavg(federation):
    from algorithms.fedavg import fedavg

    server, client = optax.sgd(1.0), optax.sgd(CLIENT_LR)
    plain = fedavg(loss, init_params, server=server, client=client)
    return flat(run(plain, federation, 2)[0].params)


def test_differentiates_in_the_client_step(x64, federation):
    def by_fad(lr):
        algorithm = build(client_lr=lr, momentum=0.9, server_lr=0.8)
        return loss_after(algorithm, federation)

    def plainly(lr):
        p, _ = by_hand(jnp, federation, 3, lr=lr, momentum=0.9)
        return pooled(jnp, federation, p)

    equal_gradients(by_fad, plainly, 0.2)


def test_hard_data_and_sweeps(x64, federation):
    survives_hard_data(build(), federation)
    sweeps(build(), federation, jnp.array([0.1, 3.0]), "lr")


def test_leaves_out_what_is_not_finite(x64, federation):
    leaves_out(build(momentum=0.9, mu=0.7, nonfinite="exclude"), federation)


def test_sends_one_number_more_than_fedavg(federation):
    sent = cost(build(), federation)
    # The mean step, tau, the weight, and the loss that is shown.
    assert (sent.rounds, sent.bytes_down, sent.bytes_up) == (1, MODEL, MODEL + 4 * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": -0.1}, "mu: expected >= 0 and < 1 / client_lr, got -0.1"),
        ({"mu": 10.0}, "mu: .* got 10.0 with client_lr = 0.1"),
        ({"client_momentum": 1.0}, r"client_momentum: expected in \[0, 1\), got 1.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
