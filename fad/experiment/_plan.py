"""What an experiment will communicate, before it runs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import ConfigError
from fad._strong import strong
from fad.experiment._cohorts import cohort_options
from fad.experiment._config import Experiment
from fad.placement import AtClients
from fad.plan import Plan, plan
from fad.plan._text import bytes_text, flops_text


def plan_step(experiment: Experiment, algorithm: Any, task: Any) -> Plan:
    """Plan one step of an experiment from shapes: nothing is compiled or trained.

    Args:
        experiment: The size of the cohort and its batches.
        algorithm: The ``fad.Algorithm``.
        task: The ``fad.data.Task`` or ``fad.data.BilevelTask``.

    Returns:
        The plan of ``algorithm.step``.

    Raises:
        PlanError: The step communicates nothing, or without a bound.
    """
    return plan(algorithm.step)(*step_arguments(experiment, algorithm, task))


def step_arguments(experiment: Experiment, algorithm: Any, task: Any) -> tuple:
    """Return the types of what the step takes: state, cohort, key, memories if any."""
    key = jax.eval_shape(lambda: jax.random.key(experiment.seed))
    state = jax.eval_shape(lambda k: jax.tree.map(strong, algorithm.init(k)), key)
    cohort = task.train.cohort(
        np.zeros(2, np.uint32),  # any key gives these shapes: those of the largest
        experiment.cohort,
        bucket_growth=None,
        **cohort_options(experiment, task.train.num_clients),
    )
    args = (state, jax.eval_shape(lambda c: c, cohort), key)
    if algorithm.init_client is None:
        return args
    return *args, _memories(algorithm.init_client, state, experiment.cohort)


def _memories(init_client: Any, state: Any, size: int) -> AtClients[Any]:
    def stacked(state: Any) -> Any:
        first = jax.tree.map(strong, init_client(state))
        return AtClients(jax.tree.map(lambda x: jnp.stack([x] * size), first))

    return jax.eval_shape(stacked, state)


def run_text(experiment: Experiment, step: Plan, clients: int) -> str:
    """Return what the whole run costs, as text for a person.

    The FLOPs are those of rounds whose largest client is the federation's.
    """
    cost, steps = step.cost(), experiment.rounds

    def traffic(times: int) -> str:
        down, up = (
            bytes_text(times * cost.bytes_down),
            bytes_text(times * cost.bytes_up),
        )
        flops = flops_text(times * cost.client_flops)
        return f"{down} down, {up} up, at most {flops}"

    return "\n".join(
        [
            f"whole run: {steps} steps, {steps * cost.rounds} rounds, "
            f"{experiment.cohort} of {clients} clients in each step",
            f"  a client in every step  {traffic(steps)}",
            f"  all clients together    {traffic(steps * step.clients)}",
        ]
    )


def save_figure(step: Plan, path: Path) -> None:
    """Write the drawing of a plan.

    Raises:
        ConfigError: The file cannot be written, or its ending is no known format.
    """
    try:
        step.figure().savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--figure {path}: {error}") from None
