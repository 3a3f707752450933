"""A meta-training of seconds: digits, and an aggregator of one number."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fad.aggregators import Aggregator
from fad.experiment import (
    AggregatorConfig,
    DataConfig,
    Federation,
    MetaTraining,
    ModelConfig,
)

NAME = "tests.experiment.meta_subjects"


def step_size(*, rounds: int, start: float = -3.0, factor: float = 1.0) -> Aggregator:
    """FedAvg with a learned log step, that starts far too small."""
    del rounds

    def server(theta, state, mean, params, key):
        del params, key
        return jax.tree.map(lambda d: factor * jnp.exp(theta["log"]) * d, mean), state

    return Aggregator(
        init_theta=lambda key: {"log": jnp.array(start)},
        init=lambda params: jnp.zeros(()),
        server=server,
    )


def federation(**changes: Any) -> Federation:
    """Ten clients that share 200 digits."""
    values: dict[str, Any] = {
        "label": "digits",
        "examples": 200,
        "alpha": (0.3, 3.0),
        "client_lr": (0.1, 0.2),
        "data": DataConfig(partition="dirichlet", clients=10),
        "model": ModelConfig(name="logistic"),
    }
    return Federation(**{**values, **changes})


def meta_training(**changes: Any) -> MetaTraining:
    """Two inner runs of six rounds in windows of two."""
    options = changes.pop("options", {})
    values: dict[str, Any] = {
        "name": "tiny",
        "steps": 4,
        "rounds": 6,
        "window": 2,
        "checkpoint_every": 2,
        "meta_lr": 0.3,
        "cohort": 4,
        "batch_size": 5,
        "max_examples": 10,
        "aggregator": AggregatorConfig(name=f"{NAME}:step_size", options=options),
        "federation": (federation(runs=2),),
    }
    return MetaTraining(**{**values, **changes})


def without_seconds(rows: list[dict]) -> list[dict]:
    """Drop what no two runs share."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def replaced(config: MetaTraining, **changes: Any) -> MetaTraining:
    """Return a changed copy."""
    return dataclasses.replace(config, **changes)
