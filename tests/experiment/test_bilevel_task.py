"""The tasks of two levels, on scikit-learn's digits."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fad
from fad import ConfigError, models
from fad.experiment import BilevelConfig, DataConfig, ModelConfig, make_bilevel_task
from fad.experiment import _bilevel_problems as problems
from fad.local.layers import StaticBatchNorm

pytestmark = pytest.mark.once

DATA = DataConfig(clients=10)
NETWORK = ModelConfig(name="fednest_mlp", width=3)
LOGISTIC = ModelConfig(name="logistic")
HEADER = BilevelConfig(task="hyper_representation")


def make(task, data=DATA, model=LOGISTIC, **options):
    return make_bilevel_task(data, model, BilevelConfig(task=task, **options))


def rows(federated, count=6):
    return {name: x[:count] for name, x in federated.examples.items()}


def start(task, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return task.init_upper(keys[0]), task.init_lower(keys[1])


def entropy(logits, labels):
    """Cross-entropy, in NumPy: ``[batch, C] -> [batch]``."""
    logits = np.asarray(logits, np.float64)
    largest = logits.max(1, keepdims=True)
    scores = largest[:, 0] + np.log(np.exp(logits - largest).sum(1))
    return scores - logits[np.arange(len(labels)), labels]


def dense(layer, x):
    kernel, bias = (np.asarray(layer[k], np.float64) for k in ("kernel", "bias"))
    return x.reshape(len(x), -1) @ kernel + bias


def test_equal_configurations_share_a_task():
    assert make_bilevel_task(DATA, NETWORK, HEADER) is make_bilevel_task(
        DATA, NETWORK, dataclasses.replace(HEADER)
    )


@pytest.mark.parametrize("partition", ["iid", "shards"])
def test_every_client_is_split_in_the_shares_asked_for(partition):
    data = dataclasses.replace(DATA, partition=partition)
    task = make("regularisation", data, upper_fraction=0.2)
    whole = task.lower.sizes + task.upper.sizes
    np.testing.assert_allclose(task.upper.sizes / whole, 0.2, atol=0.01)
    for i in range(10):
        lower, upper = (level.client(i)["y"] for level in (task.lower, task.upper))
        assert set(upper) <= set(lower)
    held = np.concatenate([task.lower.examples["x"], task.upper.examples["x"]])
    assert len(np.unique(held.reshape(len(held), -1), axis=0)) == len(held)


def test_a_client_of_one_example_has_it_below():
    data = DataConfig(partition="power_law", exponent=3.0, clients=40)
    task = make("regularisation", data, upper_fraction=0.2)
    alone = task.upper.sizes == 0
    assert alone.any()
    assert (task.lower.sizes[alone] <= 2).all()


def test_hyper_representation():
    task = make_bilevel_task(DATA, NETWORK, HEADER)
    x, y = start(task)
    assert {k: a.shape for k, a in x["body"].items()} == {
        "bias": (3,),
        "kernel": (64, 3),
    }
    assert {k: a.shape for k, a in y.items()} == {"bias": (10,), "kernel": (3, 10)}
    assert task.problem.random
    examples = rows(task.upper)
    labels = examples["y"]
    hidden = np.maximum(dense(x["body"], examples["x"] / 16.0), 0)
    plain = entropy(dense(y, hidden), labels)
    np.testing.assert_allclose(task.metrics(x, y, examples)["loss"], plain, rtol=1e-5)
    np.testing.assert_allclose(task.problem.upper(x, y, examples), plain, rtol=1e-5)
    norms = np.linalg.norm(y["kernel"]) + 0.01  # that of the biases, which are 0
    lower = task.problem.lower(x, y, examples)
    np.testing.assert_allclose(lower, plain + 0.05 * norms, rtol=1e-5)


def test_dropout_is_in_both_losses_and_in_no_metric():
    task = make_bilevel_task(DATA, NETWORK, HEADER)
    (x, y), examples = start(task), rows(task.upper, 40)
    for loss in task.problem.upper, task.problem.lower:
        one, two = (loss(x, y, examples, jax.random.key(i)) for i in (1, 2))
        again = loss(x, y, examples, jax.random.key(1))
        np.testing.assert_array_equal(one, again)
        assert (np.asarray(one) != np.asarray(two)).any()
    first, second = (task.metrics(x, y, examples)["loss"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_last_layer_of_any_model_can_be_named():
    model = ModelConfig(hidden=(3, 4))
    task = make("hyper_representation", model=model, header="Dense_2", penalty=0.5)
    x, y = start(task)
    assert sorted(x) == ["Dense_0", "Dense_1"]
    assert y["kernel"].shape == (4, 10)
    assert not task.problem.random
    examples = rows(task.lower)
    difference = task.problem.lower(x, y, examples) - task.problem.upper(x, y, examples)
    expected = 0.5 * (np.linalg.norm(y["kernel"]) + 0.01)
    np.testing.assert_allclose(difference, expected, rtol=1e-4)


def test_norms_are_smooth_at_zero(x64):
    zero = jnp.zeros(3)
    np.testing.assert_array_equal(jax.grad(problems._norm)(zero), zero)
    check_grads(problems._norm, (zero,), order=2, modes=["fwd", "rev"], eps=1e-5)
    curvature = jax.hessian(problems._norm)(zero)
    np.testing.assert_allclose(curvature, 100 * np.eye(3))
    assert problems._norm(jnp.zeros(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_norms_are_norms_elsewhere(x64):
    x = jnp.array([3.0, -4.0])
    np.testing.assert_allclose(problems._norm(x), 5, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(problems._norm)(x), x / 5, rtol=1e-5)


def test_imbalance():
    sizes = tuple(range(100, 0, -10))
    data = dataclasses.replace(DATA, class_sizes=sizes)
    task = make("imbalance", data, NETWORK)
    labels = [level.examples["y"] for level in (task.lower, task.upper)]
    counts = np.bincount(np.concatenate(labels))
    assert counts.tolist() == list(sizes)
    x, y = start(task)
    assert {k: (a.shape, a.dtype) for k, a in x.items()} == {
        "dy": ((10,), jnp.float32),
        "ly": ((10,), jnp.float32),
    }
    assert not np.any([*x.values()])
    examples = rows(task.lower)
    features, labels = examples["x"] / 16.0, examples["y"]
    logits = dense(y["header"], np.maximum(dense(y["body"], features), 0))
    scale, shift = np.linspace(-1, 1, 10), np.linspace(2, 0, 10)
    x = {"dy": jnp.float32(scale), "ly": jnp.float32(shift)}
    expected = entropy(logits / (1 + np.exp(-scale)) + shift, labels)
    np.testing.assert_allclose(task.problem.lower(x, y, examples), expected, rtol=1e-5)
    balance = 550 / (10 * counts)
    np.testing.assert_allclose(
        task.problem.upper(x, y, examples),
        balance[labels] * entropy(logits, labels),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        task.metrics(x, y, examples)["loss"], entropy(logits, labels), rtol=1e-5
    )
    # The mean over examples is the mean over classes.
    np.testing.assert_allclose((balance * counts).sum() / 550, 1)


def test_the_tests_classes_stay_as_they_are():
    small = dataclasses.replace(DATA, class_sizes=(9, 8, 7, 6, 5, 4, 3, 2, 1, 1))
    held = make("imbalance", small).test, make("imbalance").test
    np.testing.assert_array_equal(held[0]["y"], held[1]["y"])


@pytest.fixture
def cleaning():
    return make("hyper_cleaning", dataclasses.replace(DATA, label_noise=0.3))


def test_hyper_cleaning(cleaning):
    clean = make("hyper_cleaning")
    right = clean.lower.examples["y"] == cleaning.lower.examples["y"]
    np.testing.assert_allclose(1 - right.mean(), 0.3, atol=0.01)
    np.testing.assert_array_equal(
        clean.upper.examples["y"], cleaning.upper.examples["y"]
    )
    x, y = start(cleaning)
    np.testing.assert_array_equal(cleaning.lower.examples["id"], np.arange(len(x)))
    x = x + jnp.linspace(-3, 3, len(x))
    examples = {k: a[-6:] for k, a in cleaning.lower.examples.items()}
    losses = cleaning.metrics(x, y, examples)["loss"]
    squares = sum(float((a**2).sum()) for a in jax.tree.leaves(y))
    weights = 1 / (1 + np.exp(-np.asarray(x[-6:])))
    np.testing.assert_allclose(
        cleaning.problem.lower(x, y, examples),
        weights * losses + 1e-3 / 2 * squares,
        rtol=1e-5,
    )
    np.testing.assert_allclose(cleaning.problem.upper(x, y, examples), losses)


def test_an_example_keeps_its_number_in_a_cohort(cleaning, getkey):
    lower, upper = cleaning.train.cohort(getkey(), 3, batch_size=7).unsafe_gather()
    ids, mask = lower.examples["id"], lower.mask
    np.testing.assert_array_equal(
        lower.examples["x"][mask], cleaning.lower.examples["x"][ids[mask]]
    )
    assert "id" not in upper.examples


def test_the_area_under_the_curve_of_the_weights(cleaning):
    right = make("hyper_cleaning").lower.examples["y"] == cleaning.lower.examples["y"]
    auc = cleaning.set_metrics["clean_auc"]
    assert auc(jnp.asarray(right, jnp.float32), None, None) == 1
    assert auc(-jnp.asarray(right, jnp.float32), None, None) == 0
    assert auc(jnp.zeros(len(right)), None, None) == 0.5
    assert not make("hyper_cleaning").set_metrics


def test_the_weights_of_wrong_labels_fall(cleaning):
    """A few hypergradient steps with all clients, from exact implicit derivatives."""
    problem = cleaning.problem
    lower, upper = cleaning.lower.examples, cleaning.upper.examples
    x, y = start(cleaning)

    @jax.jit
    def step(x, y):
        def g(y, x):
            return problem.lower(x, y, lower).mean()

        y = jax.lax.fori_loop(0, 30, lambda _, y: descend(y, jax.grad(g)(y, x)), y)
        v = jax.grad(lambda y: problem.upper(x, y, upper).mean())(y)
        # With the identity for the Hessian, a first guess of the direction.
        return x + jax.grad(lambda x: dot(jax.grad(g)(y, x), v))(x) * len(x), y

    def descend(y, d):
        return jax.tree.map(lambda a, b: a - 0.5 * b, y, d)

    def dot(a, b):
        return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: (a * b).sum(), a, b))

    for _ in range(10):
        x, y = step(x, y)
    assert cleaning.set_metrics["clean_auc"](x, y, cleaning.test) > 0.9


def test_regularisation():
    task = make("regularisation", penalty=0.02)
    x, y = start(task)
    np.testing.assert_allclose(x, np.full(64, np.log(0.02)), rtol=1e-6)
    assert x.dtype == jnp.float32
    x = x + jnp.linspace(0, 2, 64)
    examples = rows(task.lower)
    losses = task.metrics(x, y, examples)["loss"]
    kernel = np.asarray(y["Dense_0"]["kernel"])
    penalty = (np.exp(np.asarray(x))[:, None] * kernel**2).sum() / 2
    expected = np.asarray(losses) + penalty
    np.testing.assert_allclose(task.problem.lower(x, y, examples), expected, rtol=1e-5)
    np.testing.assert_allclose(task.problem.upper(x, y, examples), losses)


MLP = ModelConfig(hidden=(3,))
TASKS = {
    "hyper_representation": (DATA, MLP, {"header": "Dense_1"}),
    "imbalance": (DATA, MLP, {}),
    "hyper_cleaning": (dataclasses.replace(DATA, label_noise=0.3), LOGISTIC, {}),
    "regularisation": (DATA, LOGISTIC, {"penalty": 0.1}),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_hypergradient_over_clients_equals_plain_jax(name, getkey):
    """Through one step on the lower level, with a place left empty."""
    data, model, options = TASKS[name]
    task = make(name, data, model, weighting="examples", **options)
    problem, (x, y) = task.problem, start(task)
    reachable = np.arange(10) > 7
    cohort = task.train.cohort(getkey(), 3, batch_size=80, available=reachable)
    solver = fad.solvers.gradient_descent(0.5, weighting="examples")
    estimator = fad.estimators.itd(problem, solver, steps=1)
    cohorts = jax.tree.map(lambda a: jnp.asarray(a)[None], cohort)
    state = estimator.init(x, y, cohort)
    found = jax.jit(estimator.estimate)(x, state, cohorts, None)

    def together(level):
        parts = [level.client(i) for i in (8, 9)]
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    lower, upper = together(task.lower), together(task.upper)

    @jax.jit
    @jax.value_and_grad
    def plain(x):
        slope = jax.grad(lambda y: problem.lower(x, y, lower).mean())(y)
        moved = jax.tree.map(lambda a, b: a - 0.5 * b, y, slope)
        return problem.upper(x, moved, upper).mean()

    value, hypergradient = plain(x)
    np.testing.assert_allclose(found.value, value, rtol=1e-5)
    assert jax.tree.leaves(hypergradient)[0].dtype == jnp.float32
    near: Any = {"rtol": 1e-3, "atol": 1e-6}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **near),
        found.hypergradient,
        hypergradient,
    )
    assert max(float(abs(h).max()) for h in jax.tree.leaves(hypergradient)) > 1e-5


class Normed(nn.Module):
    """Static batch norm and a linear layer: ResNet-18 takes long to compile."""

    @nn.compact
    def __call__(self, x, mask=None):
        return nn.Dense(10)(StaticBatchNorm()(x.reshape(x.shape[0], -1), mask))


def test_static_batch_norm_knows_the_rows_of_both_levels(monkeypatch):
    monkeypatch.setattr(models, "make", lambda name, *, classes, norm: Normed())
    model = ModelConfig(name="resnet18", norm="static_batch")
    task = make_bilevel_task.__wrapped__(DATA, model, BilevelConfig(task="imbalance"))
    (x, y), test = start(task), {k: a[:5] for k, a in task.test.items()}
    for examples in (rows(task.lower, 5), rows(task.upper, 5), test):
        assert examples["real"].all()
        padded = {k: np.append(a, np.zeros_like(a[:2]), 0) for k, a in examples.items()}
        losses = task.metrics(x, y, padded)["loss"][:5]
        alone = task.metrics(x, y, examples)["loss"]
        np.testing.assert_allclose(losses, alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            (DATA, ModelConfig(hidden=(3,)), HEADER),
            r"bilevel\.header: the model has no layer 'header'; it has Dense_0, "
            r"Dense_1\. Name the last one",
        ),
        (
            (DATA, LOGISTIC, dataclasses.replace(HEADER, header="Dense_0")),
            r"bilevel\.header: 'Dense_0' is all that the model has, and nothing is le",
        ),
        (
            (DATA, NETWORK, BilevelConfig(task="regularisation")),
            r"bilevel\.task: 'regularisation' is of logistic regression; set model\.na",
        ),
        (
            (dataclasses.replace(DATA, validation_fraction=0.1), NETWORK, HEADER),
            r"data\.validation_fraction: with two levels the clients hold the validati",
        ),
        (
            (dataclasses.replace(DATA, class_sizes=(5, 5)), NETWORK, HEADER),
            r"data\.class_sizes: expected one size per class; got 2, but this set has",
        ),
    ],
    ids=["header", "nothing left", "logistic", "validation", "class_sizes"],
)
def test_refuses(arguments, match):
    with pytest.raises(ConfigError, match=match):
        make_bilevel_task(*arguments)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"upper_fraction": 1.0}, r"upper_fraction must be in \(0, 1\), got 1\.0"),
        ({"upper_epochs": 0}, r"upper_epochs must be >= 1, got 0"),
        ({"upper_batch_size": 0}, r"upper_batch_size must be >= 1, got 0"),
        ({"penalty": 0.0}, r"penalty must be > 0 and finite, got 0\.0"),
        (
            {"task": "imbalance", "penalty": 0.1},
            r"penalty: task 'imbalance' has no regulariser",
        ),
        (
            {"task": "imbalance", "header": "Dense_0"},
            r"header is for task 'hyper_representation' alone",
        ),
    ],
)
def test_config_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        BilevelConfig(**{"task": "hyper_representation", **options})
