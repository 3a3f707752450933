import jax
import numpy as np
import pytest

from fad.experiment import DataConfig, ModelConfig, make_task


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards"])
def test_partitions(partition):
    task = make_task(DataConfig(partition=partition, clients=5), ModelConfig())
    assert task.train.num_clients == 5


@pytest.mark.parametrize(
    ("model", "widths"),
    [
        (ModelConfig(), [64, 64, 10]),
        (ModelConfig(hidden=(8,)), [8, 10]),
        (ModelConfig(name="logistic"), [10]),
    ],
)
def test_models(model, widths):
    task = make_task(DataConfig(clients=5), model)
    params = task.init(jax.random.key(0))
    assert [layer["bias"].shape[0] for layer in params.values()] == widths
    batch = {k: x[:3] for k, x in task.test.items()}
    metrics = task.metrics(params, batch)
    assert metrics["accuracy"].shape == metrics["loss"].shape == (3,)
    np.testing.assert_array_equal(task.loss(params, batch), metrics["loss"])


def test_equal_configurations_share_a_task():
    a, b = (make_task(DataConfig(clients=5), ModelConfig()) for _ in range(2))
    assert a is b
