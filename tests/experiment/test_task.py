import flax.linen as nn
import jax
import numpy as np
import pytest

from fad import models
from fad.experiment import DataConfig, ModelConfig, make_task
from fad.local.layers import StaticBatchNorm


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


class Normed(nn.Module):
    """Static batch norm and a linear layer: ResNet-18 takes long to compile."""

    @nn.compact
    def __call__(self, x, mask=None):
        x = StaticBatchNorm()(x.reshape(x.shape[0], -1), mask)
        return nn.Dense(10)(x)


@pytest.mark.once
def test_static_batch_norm_leaves_padding_out(monkeypatch):
    monkeypatch.setattr(models, "make", lambda name, *, classes, norm: Normed())
    model = ModelConfig(name="resnet18", norm="static_batch")
    task = make_task.__wrapped__(DataConfig(clients=5), model)
    params = task.init(jax.random.key(0))
    cohort = task.train.cohort(jax.random.key(1), 1, batch_size=300).unsafe_gather()
    examples = {name: x[0, 0] for name, x in cohort.examples.items()}
    mask = cohort.mask[0, 0]
    assert 0 < mask.sum() < 300
    np.testing.assert_array_equal(examples["real"], mask)
    alone = {name: x[mask] for name, x in examples.items()}
    losses = task.loss(params, examples)[mask]
    np.testing.assert_allclose(losses, task.loss(params, alone), rtol=1e-5)
