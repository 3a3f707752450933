"""The cohorts of a run: which clients, how they are sampled, where they are put."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fad.experiment._config import Experiment


def cohort_options(experiment: Experiment, num_clients: int) -> dict[str, Any]:
    """Return the options of the task's ``train.cohort`` that an experiment sets."""
    bilevel = experiment.bilevel
    available = None
    if experiment.availability < 1:
        available = np.full(num_clients, experiment.availability)
    return {
        "batch_size": experiment.batch_size,
        "epochs": experiment.epochs,
        "sampling": experiment.sampling,
        "replace": experiment.replace,
        "max_examples": experiment.max_examples,
        "available": available,
        "tiers": experiment.tiers,
        "tiers_by": experiment.tiers_by,
        **({} if bilevel is None else bilevel.cohort_options()),
    }


def make_cohorts(
    experiment: Experiment, task: Any, key: jax.Array, mesh: Mesh | None
) -> Any:
    """Return the cohorts of an experiment, the next prepared while a round runs.

    Over a mesh they stay on the host: each process puts its own clients on it.
    """
    options = cohort_options(experiment, task.train.num_clients)
    place = (lambda cohort: cohort) if mesh is not None else jax.device_put
    return task.train.cohorts(key, experiment.cohort, place=place, **options)
