"""Where the weights of examples begin, in hyper-cleaning."""

import dataclasses
from typing import Any

from benchmarks._study import Start

SURE = 20.0  # The weight of an example is sigmoid(x).


def begin(start: Start, algorithm: Any, experiment: Any) -> Any:
    """Return the algorithm with example weights of 1, or of 0 at wrong labels."""
    import jax.numpy as jnp

    from fad.experiment import make_bilevel_task

    parts = (experiment.model, experiment.bilevel)
    noisy = make_bilevel_task(experiment.data, *parts)
    clean = dataclasses.replace(experiment.data, label_noise=0.0)
    truth = make_bilevel_task(clean, *parts).lower.examples["y"]
    counts = (noisy.lower.examples["y"] == truth) | (start == "all")
    x = jnp.where(counts, SURE, -SURE)

    def init(key: Any) -> Any:
        return algorithm.init(key)._replace(x=x)

    return algorithm._replace(init=init)
