"""FedDyn against NumPy, its exact special cases, and the drift that it removes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algorithms import feddyn as module
from algorithms.fedavg import fedavg
from algorithms.feddyn import Config, feddyn
from tests.algorithms.classical import (
    distances,
    partial_cohorts,
    quadratic,
    quadratic_loss,
    run_partially,
    start,
)
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_hypergradient_descent import (
    CLIENT_LR,
    MODEL,
    equal_gradients,
    first_params,
    flat,
    gradient,
    pooled,
)
from tests.algorithms.test_scaffold import (
    NONEMPTY,
    cost,
    fedavg_stalls,
    flat_table,
    keeps_dtype,
    loss_after,
    noise_of,
    random_loss,
    row_losses,
    survives_hard_data,
    task_of_sizes,
)

pytestmark = pytest.mark.once

ALPHA = 0.5


def build(**options):
    options = {
        "loss": loss,
        "init_params": init_params,
        "num_clients": NONEMPTY,
        "alpha": ALPHA,
        "client_lr": CLIENT_LR,
    } | options
    return feddyn(options.pop("loss"), options.pop("init_params"), **options)


def by_hand(xp, federation, cohorts, *, alpha=ALPHA):
    x, h, losses = first_params(), xp.zeros(4), []
    memory = [xp.zeros(4)] * len(federation.clients)
    for cohort in cohorts:
        models, seen = [], []
        for i in cohort:
            rows, labels = federation.clients[i]
            if not len(rows):
                continue
            t, total = x, 0.0
            for first in range(0, len(rows), federation.batch):
                batch = slice(first, first + federation.batch)
                total += xp.sum(row_losses(xp, t, rows[batch], labels[batch]))
                g = gradient(xp, t, rows[batch], labels[batch])
                t = t - CLIENT_LR * (g - memory[i] + alpha * (t - x))
            memory[i] = memory[i] - alpha * (t - x)
            models.append(t)
            seen.append(total / len(rows))
        h = h - alpha / NONEMPTY * sum(t - x for t in models)
        x = sum(models) / len(models) - h / alpha
        losses.append(sum(seen) / len(seen))
    return x, h, memory, losses


def test_equals_numpy(x64, federation):
    cohorts = partial_cohorts(4, 20, 2)
    state, table, rows = run_partially(build(), federation.cohort, cohorts)
    x, h, memory, losses = by_hand(np, federation, cohorts)
    np.testing.assert_allclose(flat(state.params), x, rtol=1e-10)
    np.testing.assert_allclose(flat(state.h), h, rtol=1e-10)
    np.testing.assert_allclose(flat_table(table), memory, rtol=1e-10)
    np.testing.assert_allclose([r["train_loss"] for r in rows], losses, rtol=1e-10)
    np.testing.assert_allclose(rows[-1]["h_square"], h @ h, rtol=1e-10)
    # h is the mean of what the clients that have examples keep.
    np.testing.assert_allclose(h, sum(memory) / NONEMPTY, rtol=1e-10)


def test_the_first_round_is_one_of_fedprox(x64, federation):
    def proximal_loss(params, examples):
        way = jnp.append(params["w"], params["b"]) - first_params()
        return loss(params, examples) + ALPHA / 2 * jnp.sum(way**2)

    fedprox = fedavg(
        proximal_loss,
        init_params,
        server=optax.sgd(1.0),
        client=optax.sgd(CLIENT_LR),
        server_lr=1 + 2 / NONEMPTY,
        weighting="uniform",
    )
    cohorts = [np.array([2, 3])]
    want, _, _ = run_partially(fedprox, federation.cohort, cohorts)
    got, _, _ = run_partially(build(), federation.cohort, cohorts)
    np.testing.assert_allclose(flat(got.params), flat(want.params), rtol=1e-12)


def on_quadratic(**options):
    options = {"num_clients": 5, "alpha": 1.0, "client_lr": 0.1} | options
    return feddyn(quadratic_loss, lambda key: jnp.zeros(3), **options)


def test_one_client_with_exact_minima_is_the_proximal_point_method(x64):
    """In one dimension one step of 1 / (curvature + alpha) finds the minimum."""
    problem = quadratic((1,), dim=1)
    a, b = problem.a.item(), problem.b.item()
    algorithm = feddyn(
        quadratic_loss,
        lambda key: jnp.ones(1),
        num_clients=1,
        alpha=ALPHA,
        client_lr=1 / (a**2 + ALPHA),
    )
    state, table, _ = run_partially(algorithm, problem.cohort, [np.array([0])] * 20)
    t = 1.0
    for _ in range(20):
        t = (a * b + ALPHA * t) / (a**2 + ALPHA)
    slope = a * (a * t - b)
    assert table is not None
    np.testing.assert_allclose(state.params + table[0] / ALPHA, [t], rtol=1e-12)
    np.testing.assert_allclose(table[0], [slope], rtol=1e-11)


def test_one_step_of_all_clients_is_sgd_with_the_gradient_before(x64):
    problem, alpha = quadratic((1,) * 5), 2.0
    algorithm = on_quadratic(alpha=alpha, client_lr=1 / alpha)
    state, _, _ = run_partially(algorithm, problem.cohort, [np.arange(5)] * 20)
    x = before = np.zeros(3)
    for _ in range(20):
        residuals = problem.a @ x - problem.b
        slope = np.einsum("nij,ni->j", problem.a, residuals) / 5
        x, before = x - (2 * slope - before) / alpha, slope
    np.testing.assert_allclose(state.params, x, rtol=1e-12)


def test_goes_linearly_where_fedavg_stalls(x64):
    problem, algorithm = quadratic(), on_quadratic(client_lr=0.3)
    found = distances(algorithm, problem, 60)
    ratios = found[5:40] / found[4:39]
    assert ratios.max() < 0.7  # 0.66
    assert found[-1] < 1e-10
    assert abs(fedavg_stalls(problem, 0.3, 10, 60) - 0.6997) < 1e-4
    # Nor do unequal steps move the fixed point.
    assert distances(algorithm, quadratic((10, 3, 5, 1, 8)), 150)[-1] < 1e-8


def test_differentiates_in_alpha(x64, federation):
    def by_fad(alpha):
        return loss_after(build(alpha=alpha), federation)

    def plainly(alpha):
        x, *_ = by_hand(jnp, federation, [range(4)] * 3, alpha=alpha)
        return pooled(jnp, federation, x)

    equal_gradients(by_fad, plainly, ALPHA)


def test_hard_data(x64, federation):
    survives_hard_data(build, federation)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_keeps_the_dtype(federation, dtype):
    keeps_dtype(build, federation, dtype)


def test_sends_what_fedavg_sends(federation):
    sent = cost(build(), federation)
    # The model; weights, loss and what is left out.
    assert (sent.rounds, sent.bytes_down) == (1, MODEL)
    assert MODEL < sent.bytes_up <= MODEL + 5 * 4


def test_a_random_loss_gets_the_clients_key(x64, federation):
    algorithm = build(loss=random_loss, random_loss=True)
    state, memory = start(algorithm, 4)
    key = jax.random.key(3)
    _, _, memory = jax.jit(algorithm.step)(state, federation.cohort, key, memory)
    # One row, one step: g = -alpha (t - x) = alpha client_lr noise.
    want = ALPHA * CLIENT_LR * noise_of(key, 1, steps=1)
    np.testing.assert_allclose(memory.unsafe_gather()["b"][1], want, rtol=1e-12)


def test_build_counts_the_clients_with_examples(monkeypatch):
    given = {}
    monkeypatch.setattr(
        "algorithms.feddyn.feddyn", lambda *args, **options: given.update(options)
    )
    module.build(Config(nonfinite="exclude"), task_of_sizes(2, 0, 1))
    assert given == {
        "num_clients": 2,
        "alpha": 0.01,
        "client_lr": 0.1,
        "nonfinite": "exclude",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
        ({"alpha": 0.0}, r"alpha: expected in \(0, inf\), got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
