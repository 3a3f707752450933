"""The task that a configuration describes: its clients, model, loss and metrics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fad import data as fad_data
from fad.data._task import SetMetric
from fad.experiment._clients import clients_and_held_out
from fad.experiment._lazy import require
from fad.experiment._network import Width, for_model, network, rows_for
from fad.experiment._sets import Source, read
from fad.experiment._step import EVAL_BATCH
from fad.experiment._task_config import DataConfig, ModelConfig


@functools.cache
def make_task(data: DataConfig, model: ModelConfig) -> fad_data.Task:
    """Make the task of a configuration; equal configurations share one task.

    Args:
        data: The data set and its partition among clients.
        model: The model.

    Returns:
        The task. Its loss and its metrics ``accuracy`` and ``loss`` are per example:
        ``[batch]``; of text, an example's are the means over its characters. Two
        classes have the metric ``auc`` over all test examples too; real values have
        ``loss``, half the squared error, alone. With static batch norm the examples
        have ``real: [batch]`` too, False on padding, which its statistics leave out;
        the test's are those of batches of up to 512. At a smaller width it has
        ``fad.models.narrow`` of the model; ``scaled`` is for its loss alone.

    Raises:
        ConfigError: The set or the model does not fit the other options.
        DataError: The set is not there, or cannot be partitioned as asked.
        RunError: Flax is not installed.

    Example:
        >>> task = make_task(DataConfig(clients=10), ModelConfig(hidden=(16,)))
        >>> task.name, task.train.num_clients
        ('digits-mlp', 10)
    """
    source = read(data)
    train, test, validation = clients_and_held_out(source, data)
    train, test = for_model(model, train), rows_for(model, test)
    validation = None if validation is None else rows_for(model, validation)
    judge = _METRICS[source.kind]

    def at(width: Width, *, scaled: bool = False) -> fad_data.Task:
        net = network(source, data, model, train, width=width, scaled=scaled)

        def metrics(params: Any, examples: dict[str, Any]) -> dict[str, jax.Array]:
            return judge(net.outputs(params, examples), examples["y"])

        def loss(params: Any, examples: dict[str, Any]) -> jax.Array:
            return judge(net.training(params, examples), examples["y"])["loss"]

        return fad_data.Task(
            name=f"{data.set}-{model.name}",
            train=train,
            test=test,
            validation=validation,
            init=net.init,
            loss=loss,
            metrics=metrics,
            set_metrics={"auc": _auc(net.outputs)} if _two_classes(source) else {},
            narrow=functools.cache(at) if width == 1 else None,
        )

    return at(1.0)


def class_metrics(logits: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Return accuracy and cross-entropy per example: ``[batch, C] -> [batch]``."""
    return {
        "accuracy": (logits.argmax(-1) == y).astype(jnp.float32),
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, y),
    }


def _character_metrics(logits: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Average over a window: ``[batch, length] -> [batch]``; 0 is padding."""
    real = (y > 0).astype(logits.dtype)
    count = jnp.maximum(real.sum(axis=1), 1)
    each = class_metrics(logits, y)
    return {name: (real * x).sum(axis=1) / count for name, x in each.items()}


def _value_metrics(predicted: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    return {"loss": 0.5 * (predicted[:, 0] - y) ** 2}


_METRICS = {
    "classes": class_metrics,
    "characters": _character_metrics,
    "values": _value_metrics,
}


def _two_classes(source: Source) -> bool:
    return source.kind == "classes" and source.outputs == 2


def _auc(outputs: Any) -> SetMetric:
    """Return the area under the ROC curve as a metric of all test examples."""
    logits = jax.jit(outputs)

    def auc(params: Any, examples: dict[str, Any]) -> float:
        area, scores = require("sklearn.metrics").roc_auc_score, []
        for start in range(0, len(examples["y"]), EVAL_BATCH):
            batch = {k: x[start : start + EVAL_BATCH] for k, x in examples.items()}
            negative, positive = jax.device_get(logits(params, batch)).T
            scores.append(positive - negative)
        return float(area(np.asarray(examples["y"]), np.concatenate(scores)))

    return auc
