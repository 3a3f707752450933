"""A model of a configuration as functions of its parameters and of examples."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fad.data import Federated
from fad.experiment._lazy import require
from fad.experiment._sets import Examples, Source
from fad.experiment._task_config import DataConfig, ModelConfig

Width = float | tuple[float, ...]  # of all hidden layers, or of each


class Network(NamedTuple):
    """A model.

    Attributes:
        init: ``init(key) -> params``.
        outputs: ``outputs(params, examples) -> [batch, *]``; with a key as third
            argument there is dropout, where the model has it.
        random: Whether the model has dropout.
        training: ``outputs`` for losses, where a narrow model's may be scaled.
    """

    init: Callable[[jax.Array], Any]
    outputs: Callable[..., jax.Array]
    random: bool
    training: Callable[..., jax.Array]


def network(
    source: Source,
    data: DataConfig,
    model: ModelConfig,
    train: Federated,
    *,
    width: Width = 1.0,
    scaled: bool = False,
) -> Network:
    """Return the model of a configuration, for examples like those of ``train``.

    Args:
        source: The set.
        data: Its configuration.
        model: The model's.
        train: The clients' examples.
        width: The share of hidden layers' units that the model has.
        scaled: Whether hidden outputs are divided by the width in training.
    """
    options = model.options()
    if model.name == "char_transformer":
        options["length"] = data.length
    models = require("fad.models")
    net = models.make(model.name, classes=source.outputs, **options)
    row = train.examples["x"][:1]
    if width != 1:
        trained = models.narrow(net, width, scaled=scaled)
        net = models.narrow(net, width)
    else:
        trained = net

    def init(key: jax.Array) -> Any:
        return net.init(key, _features(row, source))["params"]

    dropout = getattr(net, "dropout", 0) > 0
    return Network(init, _outputs(net, source), dropout, _outputs(trained, source))


def _outputs(net: Any, source: Source) -> Callable[..., jax.Array]:
    """Return what a model gives for examples, as a function of its parameters."""

    def outputs(params: Any, examples: dict[str, Any], *key: jax.Array) -> jax.Array:
        mask = [examples["real"]] if "real" in examples else []
        rngs = {"rngs": {"dropout": key[0]}} if key else {}
        x = _features(examples["x"], source)
        return net.apply({"params": params}, x, *mask, **rngs)

    return outputs


def for_model(model: ModelConfig, clients: Federated) -> Federated:
    """Return the clients with what the model needs to know of their rows."""
    return dataclasses.replace(clients, examples=rows_for(model, clients.examples))


def rows_for(model: ModelConfig, examples: Examples) -> Examples:
    """Mark real rows for batch statistics, which leave out padding: it is False."""
    if model.norm != "static_batch":
        return examples
    return {**examples, "real": np.ones(len(examples["y"]), bool)}


def _features(x: Any, source: Source) -> jax.Array:
    """Return pixels as numbers in [0, 1] or standardised, anything else as it is."""
    x = jnp.asarray(x)
    if source.scale is None:
        return x
    x = x.astype(jnp.float32) / source.scale
    if source.moments is None:
        return x
    mean, deviation = source.moments
    return (x - mean) / deviation
