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


class Network(NamedTuple):
    """A model.

    Attributes:
        init: ``init(key) -> params``.
        outputs: ``outputs(params, examples) -> [batch, *]``; with a key as third
            argument there is dropout, where the model has it.
        random: Whether the model has dropout.
    """

    init: Callable[[jax.Array], Any]
    outputs: Callable[..., jax.Array]
    random: bool


def network(
    source: Source, data: DataConfig, model: ModelConfig, train: Federated
) -> Network:
    """Return the model of a configuration, for examples like those of ``train``."""
    options = model.options()
    if model.name == "char_transformer":
        options["length"] = data.length
    net = require("fad.models").make(model.name, classes=source.outputs, **options)
    row = train.examples["x"][:1]

    def init(key: jax.Array) -> Any:
        return net.init(key, _features(row, source))["params"]

    def outputs(params: Any, examples: dict[str, Any], *key: jax.Array) -> jax.Array:
        mask = [examples["real"]] if "real" in examples else []
        rngs = {"rngs": {"dropout": key[0]}} if key else {}
        x = _features(examples["x"], source)
        return net.apply({"params": params}, x, *mask, **rngs)

    return Network(init, outputs, getattr(net, "dropout", 0) > 0)


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
