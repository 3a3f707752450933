"""The learned aggregator as an algorithm, against a per-client Python loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms.aggregated_fedavg import aggregated_fedavg
from algorithms.learned_aggregator import SHIPPED, Config, build
from fad import aggregators
from fad.experiment import DataConfig, ModelConfig, make_task
from tests.aggregators.runs import saturated
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import assert_close, python_round


def _algorithm(aggregator, theta, client, **options):
    return aggregated_fedavg(
        loss, init_params, aggregator=aggregator, theta=theta, client=client, **options
    )


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_untrained_it_is_fedavg_with_momentum_and_a_falling_step(
    x64, federation, weighting
):
    aggregator = aggregators.learned_optimizer(rounds=3, hidden=(2,))
    theta = aggregator.init_theta(jax.random.key(0))
    theta = jax.tree.map(lambda x: x.astype(float), theta)
    client = optax.sgd(0.2)
    algorithm = _algorithm(aggregator, theta, client, weighting=weighting)
    state = algorithm.init(jax.random.key(0))
    want, velocity = state.params, jax.tree.map(jnp.zeros_like, state.params)
    step = jax.jit(algorithm.step)
    for t in range(1, 4):
        state, _ = step(state, federation.cohort, jax.random.key(t))
        delta = python_round(federation, want, client=client, weighting=weighting)
        velocity = jax.tree.map(lambda v, d: 0.9 * v + 0.1 * d, velocity, delta)
        moved = jax.tree.map(lambda v, b=1 - 0.9**t: v / b, velocity)
        moved = saturated(moved, delta, want, part=(t - 1) / 3)
        want = jax.tree.map(jnp.add, want, moved)
    assert_close(state.params, want, tol=1e-6)


def test_any_aggregator_of_the_users_own(x64, federation):
    client = optax.sgd(0.2)
    half = aggregators.Aggregator(
        init_theta=lambda key: jnp.asarray(np.array(0.5)),
        init=lambda params: (),
        server=lambda theta, state, mean, params, key: (
            jax.tree.map(lambda d: theta * d, mean),
            state,
        ),
    )
    algorithm = _algorithm(half, half.init_theta(jax.random.key(0)), client)
    state = algorithm.init(jax.random.key(0))
    after, metrics = algorithm.step(state, federation.cohort, jax.random.key(1))
    delta = python_round(federation, state.params, client=client)
    want = jax.tree.map(lambda p, d: p + 0.5 * d, state.params, delta)
    assert_close(after.params, want)
    assert jnp.isfinite(metrics["train_loss"])


def test_theta_is_a_file_or_a_folder(tmp_path):
    task = make_task(DataConfig(clients=4), ModelConfig(name="logistic"))
    theta = aggregators.learned_optimizer(rounds=3).init_theta(jax.random.key(5))
    aggregators.save(tmp_path, theta, name="learned_optimizer", rounds=3)
    for path in (tmp_path, tmp_path / "theta.npz"):
        state = build(Config(theta=str(path), horizon=9), task).init(jax.random.key(0))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.theta, theta)
        assert all(jax.tree.leaves(same))
    with pytest.raises(fad.RunError, match="no such file"):
        build(Config(theta=str(tmp_path / "none")), task)


def test_the_shipped_theta_was_meta_trained():
    aggregator, theta = aggregators.load(SHIPPED)
    start = aggregator.init_theta(jax.random.key(0))
    assert float(jnp.abs(theta["mix"] - start["mix"]).max()) > 0.01
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(theta))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_lr": 0.0}, r"client_lr: expected > 0, got 0\.0"),
        ({"horizon": 0}, "horizon: expected >= 1, got 0"),
        ({"client_momentum": 1.0}, r"client_momentum: expected in \[0, 1\), got 1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
