"""The task that a configuration describes: its clients, model, loss and metrics."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fad import data as fad_data
from fad.experiment._config import DataConfig, ModelConfig
from fad.experiment._lazy import require

Examples = dict[str, np.ndarray]

# One entry per value of DataConfig.set: add yours here.
_SETS: dict[str, Callable[[], tuple[Examples, Examples]]] = {
    "digits": fad_data.load_digits,
}


@functools.cache
def make_task(data: DataConfig, model: ModelConfig) -> fad_data.Task:
    """Make the task of a configuration; equal configurations share one task.

    Args:
        data: The data set and its partition among clients.
        model: The model.

    Returns:
        The task. Its loss and its metrics ``accuracy`` and ``loss`` are per example:
        ``[batch]``.

    Raises:
        DataError: The data set cannot be partitioned as asked.
        RunError: Flax is not installed.

    Example:
        >>> task = make_task(DataConfig(clients=10), ModelConfig(hidden=(16,)))
        >>> task.name, task.train.num_clients
        ('digits-mlp', 10)
    """
    train, test = _SETS[data.set]()
    clients = fad_data.Federated.from_indices(train, _partition(data, train["y"]))
    classes = int(max(train["y"].max(), test["y"].max())) + 1
    net = require("fad.experiment._models").MODELS[model.name](model, classes)
    row = train["x"][:1]

    def init(key: jax.Array) -> Any:
        return net.init(key, row)["params"]

    def loss(params: Any, examples: dict[str, Any]) -> jax.Array:
        logits = net.apply({"params": params}, examples["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples["y"])

    def metrics(params: Any, examples: dict[str, Any]) -> dict[str, jax.Array]:
        logits, y = net.apply({"params": params}, examples["x"]), examples["y"]
        return {
            "accuracy": (logits.argmax(-1) == y).astype(jnp.float32),
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, y),
        }

    return fad_data.Task(
        name=f"{data.set}-{model.name}",
        train=clients,
        test=test,
        init=init,
        loss=loss,
        metrics=metrics,
    )


def _partition(data: DataConfig, labels: np.ndarray) -> Sequence[np.ndarray]:
    """Return the rows of each client."""
    match data.partition:
        case "iid":
            return fad_data.partition_iid(len(labels), data.clients, seed=data.seed)
        case "dirichlet":
            return fad_data.partition_dirichlet(
                labels, data.clients, alpha=data.alpha, seed=data.seed
            )
        case "shards":
            return fad_data.partition_shards(
                labels,
                data.clients,
                classes_per_client=data.classes_per_client,
                seed=data.seed,
            )
