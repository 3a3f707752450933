"""Tasks at a smaller width: the same data, a narrower model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.experiment import (
    BilevelConfig,
    DataConfig,
    ModelConfig,
    make_bilevel_task,
    make_task,
)

pytestmark = pytest.mark.once

DATA = DataConfig(partition="power_law", clients=6)
MLP = ModelConfig(hidden=(6, 5))
CLEANING = BilevelConfig(task="hyper_cleaning", weighting="examples")


def rows(examples, count=5):
    return {name: x[:count] for name, x in examples.items()}


def losses(params, examples, scale=1.0):
    """The cross-entropy of an MLP, in NumPy: ``[batch]``."""
    x = np.asarray(examples["x"], np.float64).reshape(len(examples["y"]), -1) / 16
    for i, layer in enumerate(params.values()):
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        if i + 1 < len(params):
            x = np.maximum(x / scale, 0)
    largest = x.max(1)
    entropy = largest + np.log(np.exp(x - largest[:, None]).sum(1))
    return entropy - x[np.arange(len(x)), examples["y"]]


def test_a_narrow_task_is_the_task_with_another_model():
    task = make_task(DATA, MLP)
    small = task.at_width(0.5)
    assert task.at_width(1) is task
    assert task.at_width(0.5) is small
    assert small.train is task.train
    assert small.test["x"] is task.test["x"]
    params = small.init(jax.random.key(0))
    assert [layer["bias"].shape[0] for layer in params.values()] == [3, 3, 10]
    examples = rows(small.test)
    expected = losses(params, examples)
    np.testing.assert_allclose(small.loss(params, examples), expected, rtol=1e-5)
    metrics = small.metrics(params, examples)
    np.testing.assert_array_equal(metrics["loss"], small.loss(params, examples))

    scaled = task.at_width(0.5, scaled=True)
    assert scaled is not small
    expected = losses(params, examples, scale=0.5)
    np.testing.assert_allclose(scaled.loss(params, examples), expected, rtol=1e-5)
    metrics = scaled.metrics(params, examples)
    np.testing.assert_array_equal(metrics["loss"], small.loss(params, examples))
    with pytest.raises(ValueError, match="the task 'digits-mlp' has one model only"):
        small.at_width(0.5)


def test_logistic_regression_has_one_width():
    task = make_task(DATA, ModelConfig(name="logistic"))
    with pytest.raises(fad.ConfigError, match="no hidden layer that can be narrower"):
        task.at_width(0.5)


def test_dropout_stays_in_narrow_losses():
    model = ModelConfig(name="fednest_mlp", width=8)
    task = make_bilevel_task(
        DATA, model, BilevelConfig(task="hyper_representation")
    ).at_width(0.5)
    key = jax.random.key(0)
    x, y = task.init_upper(key), task.init_lower(key)
    assert x["body"]["kernel"].shape == (64, 4)
    assert y["kernel"].shape == (4, 10)
    assert task.problem.random
    assert task.upper_keys is None
    examples = rows(task.upper.examples)
    lower = [task.problem.lower(x, y, examples, jax.random.key(i)) for i in range(2)]
    assert abs(lower[0] - lower[1]).max() > 1e-4


@pytest.fixture
def cleaning():
    data = dataclasses.replace(DATA, label_noise=0.3)
    return make_bilevel_task(data, MLP, CLEANING)


def start(task):
    x, y = task.init_upper(jax.random.key(0)), task.init_lower(jax.random.key(1))
    return x + jnp.linspace(-1, 1, len(x)), y


def test_hyper_cleaning_of_a_narrow_network(cleaning):
    task = cleaning.at_width(0.5)
    assert task.lower is cleaning.lower
    assert task.upper is cleaning.upper
    assert set(task.set_metrics) == {"clean_auc"}
    x, y = start(task)
    assert x.shape == cleaning.init_upper(jax.random.key(0)).shape
    assert [layer["bias"].shape[0] for layer in y.values()] == [3, 3, 10]
    examples = rows(task.lower.examples)
    squares = sum(float((a**2).sum()) for a in jax.tree.leaves(y))
    weights = 1 / (1 + np.exp(-np.asarray(x[:5])))
    scaled = cleaning.at_width(0.5, scaled=True)
    for problem, scale in ((task.problem, 1.0), (scaled.problem, 0.5)):
        plain = losses(y, examples, scale)
        expected = weights * plain + 1e-3 / 2 * squares
        np.testing.assert_allclose(problem.lower(x, y, examples), expected, rtol=1e-5)
        np.testing.assert_allclose(problem.upper(x, y, examples), plain, rtol=1e-5)
    loss = scaled.metrics(x, y, examples)["loss"]
    np.testing.assert_allclose(loss, losses(y, examples), rtol=1e-5)


def test_a_networks_hypergradient_over_clients_equals_plain_jax(cleaning):
    """Through two steps on the nonlinear lower level, with a place left empty."""
    task = cleaning.at_width(0.5)
    problem, (x, y) = task.problem, start(task)
    options = {"batch_size": 1000, "available": np.arange(6) > 3}
    cohort = task.train.cohort(jax.random.key(2), 3, **options)
    assert cohort.unsafe_gather().lower.client.tolist() == [4, 5, -1]
    solver = fad.solvers.gradient_descent(0.5, weighting="examples")
    estimator = fad.estimators.itd(problem, solver, steps=2)
    cohorts = jax.tree.map(lambda a: jnp.asarray(a)[None], cohort)
    state = estimator.init(x, y, cohort)
    found = jax.jit(estimator.estimate)(x, state, cohorts, None)

    def together(level):
        parts = [level.client(i) for i in (4, 5)]
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    lower, upper = together(task.lower), together(task.upper)

    @jax.jit
    @jax.grad
    def plain(x):
        moved = y
        for _ in range(2):
            slope = jax.grad(lambda y: problem.lower(x, y, lower).mean())(moved)
            moved = jax.tree.map(lambda a, b: a - 0.5 * b, moved, slope)
        return problem.upper(x, moved, upper).mean()

    expected = np.asarray(plain(x))
    np.testing.assert_allclose(found.hypergradient, expected, rtol=1e-3, atol=1e-7)
    assert np.count_nonzero(expected) == len(lower["y"])


def test_upper_keys_are_the_entries_that_a_clients_losses_read(cleaning):
    task, upper_keys = cleaning, cleaning.upper_keys
    options = {"batch_size": 7, "epochs": 2, "max_examples": 20}
    available = np.arange(6) % 2 == 0
    cohort = task.train.cohort(jax.random.key(2), 4, available=available, **options)
    split: Any = cohort.unsafe_gather()
    keys = jax.jit(fad.program(lambda cohort: fad.map(upper_keys, cohort)))(cohort)
    got = np.asarray(keys.unsafe_gather())
    assert got.dtype == np.int32
    assert got.shape == (4, split.lower.mask[0].size)
    for place, client in enumerate([0, 2, 4, -1]):
        ids, mask = split.lower.examples["id"][place], split.lower.mask[place]
        kept = got[place][got[place] >= 0]
        np.testing.assert_array_equal(kept, np.unique(ids[mask]))
        # Rows of both epochs stand once.
        assert (len(kept) < mask.sum()) == (client >= 0)

    # What is left out is not read.
    x, y = start(task)
    one: Any = jax.tree.map(lambda a: jnp.asarray(a[1]), split)
    client = fad.estimators.Client(task.problem, one, None)
    slope = np.asarray(jax.grad(client.g)(x, y))
    assert set(np.flatnonzero(slope)) == set(got[1][got[1] >= 0].tolist())
    assert task.at_width(0.5).upper_keys is upper_keys
