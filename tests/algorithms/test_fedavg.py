"""FedAvg and its configurations, against a per-client Python loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.fedavg import Config, fedavg, optimizers
from tests.algorithms.conftest import init_params, loss


def python_round(federation, params, *, client, weighting="examples"):
    """Return the mean update by a loop over clients and their real batches."""
    deltas, weights = [], []
    for x, y in federation.clients:
        p, state = params, client.init(params)
        for start in range(0, len(x), federation.batch):
            rows = slice(start, start + federation.batch)
            examples = {"x": jnp.asarray(x[rows]), "y": jnp.asarray(y[rows])}
            grads = jax.grad(lambda p, e: jnp.mean(loss(p, e)))(p, examples)
            updates, state = client.update(grads, state, p)
            p = optax.apply_updates(p, updates)
        deltas.append(jax.tree.map(jnp.subtract, p, params))
        weights.append(len(x) if weighting == "examples" else float(len(x) > 0))
    total = sum(weights)
    return jax.tree.map(
        lambda *d: sum(w * v for w, v in zip(weights, d, strict=True)) / total, *deltas
    )


def leaves_out(algorithm, federation):
    """Assert that ``nonfinite = "exclude"`` makes a NaN client as good as not there."""
    key, batches = jax.random.key(0), federation.cohort.unsafe_gather()
    y = batches.examples["y"].at[2, 0, 0].set(jnp.nan)
    spoiled = batches._replace(examples={**batches.examples, "y": y})

    def cohort(*ids):
        return fad.AtClients(jax.tree.map(lambda x: x[np.array(ids)], spoiled))

    state, step = algorithm.init(key), jax.jit(algorithm.step)
    after, metrics = step(state, cohort(0, 1, 2, 3), key)
    want, others = step(state, cohort(0, 1, 0, 3), key)
    jax.tree.map(np.testing.assert_array_equal, after, want)
    assert (metrics.pop("excluded_clients"), others.pop("excluded_clients")) == (1, 0)
    assert metrics == others
    assert np.isfinite(metrics["train_loss"])
    # The only one, left out: the model stays, and without a loss the run ends.
    after, metrics = step(state, cohort(0, 0, 2, 0), key)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert np.isnan(metrics["train_loss"])
    assert metrics["excluded_clients"] == 1


def assert_close(a, b, tol=1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_a_loop_over_clients(x64, federation, weighting, momentum):
    client = optax.sgd(0.2, momentum=momentum or None)
    algorithm = fedavg(
        loss,
        init_params,
        server=optax.sgd(1.0),
        client=client,
        server_lr=0.7,
        weighting=weighting,
    )
    state = algorithm.init(jax.random.key(0))
    want = state.params
    for t in range(3):
        state, _ = algorithm.step(state, federation.cohort, jax.random.key(t))
        delta = python_round(federation, want, client=client, weighting=weighting)
        want = jax.tree.map(lambda p, d: p + 0.7 * d, want, delta)
    assert_close(state.params, want)


def reddi(name, m, v, delta, config, t):
    """One direction of Algorithm 2 of Reddi et al., as optax deviates from it.

    Adagrad has eps inside of the root, Adam and Yogi correct the bias of m and v.
    """
    b1, b2, tau = config.server_b1, config.server_b2, config.server_eps
    if name == "momentum":
        m = b1 * m + delta
        return m, v, m
    if name == "adagrad":
        v = v + delta**2
        return m, v, delta / jnp.sqrt(v + tau)
    m = b1 * m + (1 - b1) * delta
    if name == "adam":
        v = b2 * v + (1 - b2) * delta**2
    else:
        v = v - (1 - b2) * delta**2 * jnp.sign(v - delta**2)
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    return m, v, m_hat / (jnp.sqrt(v_hat) + tau)


@pytest.mark.parametrize("name", ["momentum", "adagrad", "adam", "yogi"])
def test_the_fedopt_family(x64, federation, name):
    config = Config(server=name, server_lr=0.1)
    server, client = optimizers(config)
    algorithm = fedavg(loss, init_params, server=server, client=client, server_lr=0.1)
    state = algorithm.init(jax.random.key(0))
    want = state.params
    start = {"momentum": 0.0, "adagrad": config.server_eps**2, "adam": 0.0}
    v0 = start.get(name, 1e-6)  # optax's yogi starts both at 1e-6, not at 0 and tau^2
    m0 = -1e-6 if name == "yogi" else 0.0  # of the gradient, which is -delta
    m = jax.tree.map(lambda p: jnp.full_like(p, m0), want)
    v = jax.tree.map(lambda p: jnp.full_like(p, v0), want)
    for t in (1, 2, 3):
        state, _ = algorithm.step(state, federation.cohort, jax.random.key(t))
        delta = python_round(federation, want, client=client)
        for k in want:
            m[k], v[k], d = reddi(name, m[k], v[k], delta[k], config, t)
            want = {**want, k: want[k] + 0.1 * d}
    assert_close(state.params, want, 1e-9)


def test_fedsgd_is_one_local_step(x64, federation):
    """A batch that holds every row makes FedAvg a step on the pooled mean loss."""
    one = federation.cohort.unsafe_gather()
    n = one.mask.shape[0]
    flat = jax.tree.map(lambda a: a.reshape(n, 1, -1, *a.shape[3:]), one.examples)
    cohort = type(federation.cohort)(
        one._replace(examples=flat, mask=one.mask.reshape(n, 1, -1))
    )
    algorithm = fedavg(loss, init_params, server=optax.sgd(1.0), client=optax.sgd(0.3))
    state = algorithm.init(jax.random.key(0))
    after, _ = algorithm.step(state, cohort, jax.random.key(0))
    pooled = {
        "x": jnp.concatenate([jnp.asarray(x) for x, _ in federation.clients]),
        "y": jnp.concatenate([jnp.asarray(y) for _, y in federation.clients]),
    }
    grads = jax.grad(lambda p: jnp.mean(loss(p, pooled)))(state.params)
    assert_close(
        after.params, jax.tree.map(lambda p, g: p - 0.3 * g, state.params, grads)
    )


def test_learned_by_a_gradient(x64, federation):
    """The loss after rounds differentiates in the steps, as in plain JAX."""

    def after(server_lr, client_lr, mean_update):
        params = init_params(jax.random.key(0))
        for _ in range(2):
            delta = mean_update(params, client_lr)
            params = jax.tree.map(lambda p, d: p + server_lr * d, params, delta)
        return jnp.sum(params["w"] ** 2) + params["b"]

    def by_fad(params, client_lr):
        algorithm = fedavg(
            loss, lambda key: params, server=optax.sgd(1.0), client=optax.sgd(client_lr)
        )
        state, _ = algorithm.step(
            algorithm.init(jax.random.key(0)), federation.cohort, jax.random.key(0)
        )
        return jax.tree.map(jnp.subtract, state.params, params)

    def by_loop(params, client_lr):
        return python_round(federation, params, client=optax.sgd(client_lr))

    got = jax.grad(after, (0, 1))(0.8, 0.2, by_fad)
    want = jax.grad(after, (0, 1))(0.8, 0.2, by_loop)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_a_random_loss_gets_a_key_of_its_client(x64, federation):
    """Each client's noise depends on the round's key and its number alone."""

    def noisy(params, examples, key):
        return loss(params, examples) * jax.random.uniform(key, examples["y"].shape)

    algorithm = fedavg(
        noisy,
        init_params,
        server=optax.sgd(1.0),
        client=optax.sgd(0.2),
        random_loss=True,
    )
    state, key = algorithm.init(jax.random.key(0)), jax.random.key(3)
    after, _ = algorithm.step(state, federation.cohort, key)
    turned = jax.tree.map(lambda a: a[::-1], federation.cohort)
    again, _ = algorithm.step(state, turned, key)
    assert_close(after.params, again.params)
    other, _ = algorithm.step(state, federation.cohort, jax.random.key(4))
    assert not jnp.allclose(other.params["w"], after.params["w"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("server_lr", 0.0, r"server_lr: expected in \(0, inf\), got 0.0"),
        ("client_lr", -1.0, r"client_lr: expected in \(0, inf\), got -1.0"),
        ("server_b2", 1.0, r"server_b2: expected in \[0, 1\), got 1.0"),
    ],
)
def test_ranges(option, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{option: value})


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_leaves_out_what_is_not_finite(x64, federation, weighting):
    options: dict[str, Any] = {"server": optax.sgd(1.0), "client": optax.sgd(0.2)}
    options |= {"weighting": weighting}
    exclude = fedavg(loss, init_params, nonfinite="exclude", **options)
    leaves_out(exclude, federation)
    # By default such a client counts, and nothing more is sent or shown.
    batches = federation.cohort.unsafe_gather()
    y = batches.examples["y"].at[2, 0, 0].set(jnp.nan)
    spoiled = fad.AtClients(batches._replace(examples={**batches.examples, "y": y}))
    refuse, key = fedavg(loss, init_params, **options), jax.random.key(0)
    args = refuse.init(key), spoiled, key
    state, metrics = jax.jit(refuse.step)(*args)
    assert set(metrics) == {"train_loss", "server_lr"}
    assert np.isnan(metrics["train_loss"])
    assert np.isnan(state.params["w"]).all()
    more = fad.plan(exclude.step)(*args).cost()
    assert more.bytes_up > fad.plan(refuse.step)(*args).cost().bytes_up


def test_who_cannot_leave_out_has_no_such_option():
    from algorithms import ALGORITHMS

    def has(name):
        return hasattr(ALGORITHMS[name].Config, "nonfinite")

    assert all(has(name) for name in ("afl", "fedavg", "fednova", "qffl"))
    assert not any(has(name) for name in ("fathom", "fedexp", "fedhyper", "per_fedavg"))
