"""SCAFFOLD against NumPy, its degenerate cases, and the drift that it removes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import scaffold as module
from algorithms.fedavg import fedavg
from algorithms.scaffold import Config, scaffold
from tests.algorithms.classical import (
    distances,
    fedavg_stays,
    partial_cohorts,
    quadratic,
    quadratic_loss,
    run_partially,
    start,
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
    pooled,
)

pytestmark = pytest.mark.once

NONEMPTY = 3  # of the federation's four clients


# What the tests of methods with memories share.


def flat_table(table):
    """Memories as vectors ``[n, 4]``."""
    return np.column_stack([np.asarray(table["w"]), np.asarray(table["b"])])


def loss_after(algorithm, federation):
    """The pooled loss after three rounds with all clients."""

    def one_round(carry, _):
        state, memory = carry
        state, _, memory = algorithm.step(
            state, federation.cohort, jax.random.key(0), memory
        )
        return (state, memory), None

    carry = start(algorithm, federation.cohort.num_clients)
    (state, _), _ = jax.lax.scan(one_round, carry, None, length=3)
    return pooled(jnp, federation, jnp.append(state.params["w"], state.params["b"]))


def fedavg_stalls(problem, lr, steps, rounds):
    """Assert that FedAvg goes to its fixed point, and return that one's bias."""
    plain = fedavg(
        quadratic_loss,
        lambda key: jnp.zeros(3),
        server=optax.sgd(1.0),
        client=optax.sgd(lr),
    )
    stays = fedavg_stays(problem, lr, steps)
    there = distances(plain, problem._replace(optimum=stays), rounds)
    assert there[-1] < 1e-10
    return np.linalg.norm(stays - problem.optimum)


def equal(a, b):
    """Assert that two trees are the same numbers."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def spoil(cohort, value, *places):
    """The cohort with the first label of some clients replaced."""
    batches = cohort.unsafe_gather()
    y = batches.examples["y"].at[jnp.array(places), 0, 0].set(value)
    return fad.AtClients(batches._replace(examples={**batches.examples, "y": y}))


def empty(cohort, *places):
    """The cohort with all rows of some clients masked."""
    batches = cohort.unsafe_gather()
    mask = batches.mask.at[jnp.array(places)].set(False)
    return fad.AtClients(batches._replace(mask=mask))


def survives_hard_data(build, federation):
    """Assert what holds with spoiled, empty and single clients."""
    algorithm = build(nonfinite="exclude")
    state, table, _ = run_partially(
        algorithm, federation.cohort, [np.array([2, 3])] * 2
    )
    assert (flat_table(table)[2:] != 0).all()
    cohort = subset(federation.cohort, np.array([2, 3]))
    memory = fad.AtClients(jax.tree.map(lambda x: x[2:], table))
    step, key = jax.jit(algorithm.step), jax.random.key(0)

    # The first client is left out as if it were empty, or not there.
    after, metrics, kept = step(state, spoil(cohort, np.nan, 0), key, memory)
    assert metrics["excluded_clients"] == 1
    assert (flat(after.params) != flat(state.params)).all()
    found = flat_table(kept.unsafe_gather())
    np.testing.assert_array_equal(found[0], flat_table(table)[2])
    assert (found[1] != flat_table(table)[3]).all()
    others, own, same = step(state, empty(cohort, 0), key, memory)
    assert own.pop("excluded_clients") == 0
    equal((others, own, same), (after, {k: metrics[k] for k in own}, kept))
    lone = jax.tree.map(lambda x: x[1:], (cohort, memory))
    single, own, _ = step(state, lone[0], key, lone[1])
    np.testing.assert_allclose(flat(single.params), flat(after.params), rtol=1e-12)
    np.testing.assert_allclose(own["train_loss"], metrics["train_loss"], rtol=1e-12)

    # Nobody counts: all are empty, or all are left out, which ends an experiment.
    after, metrics, kept = step(state, empty(cohort, 0, 1), key, memory)
    equal((after, kept), (state, memory))
    assert (metrics["train_loss"], metrics["excluded_clients"]) == (0, 0)
    after, metrics, kept = step(state, spoil(cohort, np.inf, 0, 1), key, memory)
    equal((after, kept), (state, memory))
    assert np.isnan(metrics["train_loss"])
    assert metrics["excluded_clients"] == 2

    step = jax.jit(build(nonfinite="refuse").step)
    after, metrics, _ = step(state, spoil(cohort, np.nan, 0), key, memory)
    assert np.isnan(flat(after.params)).all()
    assert np.isnan(metrics["train_loss"])


def cast(tree, dtype):
    """The tree's floats in a dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def keeps_dtype(build, federation, dtype):
    """Assert that state and memories have the dtype of the model."""
    algorithm = build(
        loss=lambda params, examples: loss(params, cast(examples, dtype)),
        init_params=lambda key: cast(init_params(key), dtype),
    )
    state, memory = start(algorithm, federation.cohort.num_clients)
    args = state, federation.cohort, jax.random.key(0), memory
    after, _, kept = jax.eval_shape(algorithm.step, *args)
    assert {x.dtype for x in jax.tree.leaves((after, kept))} == {jnp.dtype(dtype)}


def cost(algorithm, federation):
    """What a step sends per client, who keeps one model and reveals sums alone."""
    state, memory = start(algorithm, federation.cohort.num_clients)
    args = state, federation.cohort, jax.random.key(0), memory
    kept = sum(x.nbytes for x in jax.tree.leaves(memory))
    assert kept == MODEL * federation.cohort.num_clients
    fad.check(algorithm.step)(*args)
    return fad.plan(algorithm.step)(*args).cost()


def random_loss(params, examples, key):
    """A loss whose derivative by the bias is the key's noise."""
    noise = jax.random.normal(key, ())
    return noise * params["b"] * jnp.ones_like(examples["y"])


def noise_of(key, client, steps=None):
    """The noise of one client: of its key, or the mean of its steps' keys."""
    own = fad.local.client_key(key, jnp.int32(client))
    keys = (
        [own] if steps is None else [jax.random.fold_in(own, k) for k in range(steps)]
    )
    return np.mean([jax.random.normal(k, ()) for k in keys])


def task_of_sizes(*sizes):
    """A task whose clients have these numbers of examples."""
    x = np.ones((sum(sizes), 1), np.float32)
    return fad.data.Task(
        name="ones",
        train=fad.data.Federated({"x": x}, np.cumsum([0, *sizes])),
        test={"x": x},
        init=lambda key: jnp.zeros(1),
        loss=lambda params, examples: examples["x"] @ params,
        metrics=lambda params, examples: {"mean": examples["x"].mean(1)},
    )


# SCAFFOLD itself.


def build(**options):
    options = {
        "loss": loss,
        "init_params": init_params,
        "num_clients": NONEMPTY,
        "client_lr": CLIENT_LR,
        "server_lr": 0.8,
    } | options
    return scaffold(options.pop("loss"), options.pop("init_params"), **options)


def by_hand(xp, federation, cohorts, option, *, lr=CLIENT_LR, server_lr=0.8):
    x, c, losses = first_params(), xp.zeros(4), []
    memory = [xp.zeros(4)] * len(federation.clients)
    for cohort in cohorts:
        ways, changes, seen = [], [], []
        for i in cohort:
            rows, labels = federation.clients[i]
            if not len(rows):
                continue
            y, total, steps = x, 0.0, 0
            for first in range(0, len(rows), federation.batch):
                batch = slice(first, first + federation.batch)
                total += xp.sum(row_losses(xp, y, rows[batch], labels[batch]))
                g = gradient(xp, y, rows[batch], labels[batch])
                y = y - lr * (g - memory[i] + c)
                steps += 1
            if option == "gradient":
                new = gradient(xp, x, rows, labels)
            else:
                new = memory[i] - c + (x - y) / (steps * lr)
            ways.append(y - x)
            changes.append(new - memory[i])
            seen.append(total / len(rows))
            memory[i] = new
        x = x + server_lr * sum(ways) / len(ways)
        c = c + len(changes) / NONEMPTY * (sum(changes) / len(changes))
        losses.append(sum(seen) / len(seen))
    return x, c, memory, losses


def row_losses(xp, p, x, y):
    """Conftest's loss by hand."""
    return (xp.tanh(x @ p[:3] + p[3]) - y) ** 2


@pytest.mark.parametrize("option", ["gradient", "steps"])
def test_equals_numpy(x64, federation, option):
    cohorts = partial_cohorts(4, 20, 2)
    state, table, rows = run_partially(build(option=option), federation.cohort, cohorts)
    x, c, memory, losses = by_hand(np, federation, cohorts, option)
    np.testing.assert_allclose(flat(state.params), x, rtol=1e-10)
    np.testing.assert_allclose(flat(state.control), c, rtol=1e-10)
    np.testing.assert_allclose(flat_table(table), memory, rtol=1e-10)
    np.testing.assert_allclose([r["train_loss"] for r in rows], losses, rtol=1e-10)
    np.testing.assert_allclose(rows[-1]["control_square"], c @ c, rtol=1e-10)
    # c is the mean of the control variates of the clients that have examples.
    np.testing.assert_allclose(c, sum(memory) / NONEMPTY, rtol=1e-10)


def test_one_client_in_all_makes_it_fedavg(x64, federation):
    plain = fedavg(
        loss,
        init_params,
        server=optax.sgd(1.0),
        client=optax.sgd(CLIENT_LR),
        server_lr=0.8,
    )
    want, _, rows = run_partially(plain, federation.cohort, [np.array([3])] * 20)
    algorithm = build(num_clients=1)
    got, table, own = run_partially(algorithm, federation.cohort, [np.array([3])] * 20)
    np.testing.assert_allclose(flat(got.params), flat(want.params), rtol=1e-12)
    for a, b in zip(own, rows, strict=True):
        np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-12)
    np.testing.assert_allclose(flat_table(table)[3], flat(got.control), rtol=1e-12)


def on_quadratic(**options):
    options = {"num_clients": 5, "client_lr": 0.1} | options
    return scaffold(quadratic_loss, lambda key: jnp.zeros(3), **options)


def test_one_step_of_all_clients_makes_it_sgd(x64):
    problem = quadratic((1,) * 5)
    algorithm = on_quadratic(client_lr=0.5, server_lr=0.8)
    state, _, _ = run_partially(algorithm, problem.cohort, [np.arange(5)] * 20)
    x = np.zeros(3)
    for _ in range(20):
        residuals = problem.a @ x - problem.b
        x = x - 0.8 * 0.5 * np.einsum("nij,ni->j", problem.a, residuals) / 5
    np.testing.assert_allclose(state.params, x, rtol=1e-12)


@pytest.mark.parametrize("option", ["gradient", "steps"])
def test_goes_linearly_where_fedavg_stalls(x64, option):
    problem, algorithm = quadratic(), on_quadratic(option=option)
    found = distances(algorithm, problem, 60)
    ratios = found[5:40] / found[4:39]
    assert ratios.max() < 0.65  # 0.60
    assert found[-1] < 1e-12
    assert abs(fedavg_stalls(problem, 0.1, 10, 60) - 0.2552) < 1e-4
    # Nor do unequal steps move the fixed point.
    assert distances(algorithm, quadratic((10, 3, 5, 1, 8)), 150)[-1] < 1e-8


def test_differentiates_in_the_client_step(x64, federation):
    def by_fad(lr):
        return loss_after(build(client_lr=lr), federation)

    def plainly(lr):
        x, *_ = by_hand(jnp, federation, [range(4)] * 3, "steps", lr=lr)
        return pooled(jnp, federation, x)

    equal_gradients(by_fad, plainly, 0.2)


@pytest.mark.parametrize("option", ["gradient", "steps"])
def test_hard_data(x64, federation, option):
    survives_hard_data(lambda **k: build(option=option, **k), federation)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("option", ["gradient", "steps"])
def test_keeps_the_dtype(federation, option, dtype):
    keeps_dtype(lambda **k: build(option=option, **k), federation, dtype)


def test_sends_two_models_each_way(federation):
    sent = cost(build(), federation)
    # The model and the control variate; weights, loss and what is left out.
    assert (sent.rounds, sent.bytes_down) == (1, 2 * MODEL)
    assert 2 * MODEL < sent.bytes_up <= 2 * MODEL + 5 * 4


@pytest.mark.parametrize("option", ["gradient", "steps"])
def test_a_random_loss_gets_the_clients_key(x64, federation, option):
    algorithm = build(loss=random_loss, random_loss=True, option=option)
    state, memory = start(algorithm, 4)
    key = jax.random.key(3)
    _, _, memory = jax.jit(algorithm.step)(state, federation.cohort, key, memory)
    want = noise_of(key, 3, steps=None if option == "gradient" else 3)
    np.testing.assert_allclose(memory.unsafe_gather()["b"][3], want, rtol=1e-12)


def test_build_counts_the_clients_with_examples(monkeypatch):
    given = {}
    monkeypatch.setattr(
        "algorithms.scaffold.scaffold", lambda *args, **options: given.update(options)
    )
    module.build(Config(option="gradient"), task_of_sizes(2, 0, 1))
    assert given == {
        "num_clients": 2,
        "client_lr": 0.1,
        "server_lr": 1.0,
        "option": "gradient",
        "nonfinite": "refuse",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
        ({"server_lr": -1.0}, r"server_lr: expected in \(0, inf\), got -1.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
