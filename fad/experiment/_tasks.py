"""What an experiment runs: its task, of one level or two, and its algorithm."""

from collections.abc import Mapping
from typing import Any

from fad._errors import ConfigError
from fad.experiment._bilevel_task import make_bilevel_task
from fad.experiment._config import Experiment, algorithm_name
from fad.experiment._task import make_task


def build(algorithms: Mapping[str, Any], experiment: Experiment) -> tuple[Any, Any]:
    """Return the algorithm and the task of an experiment.

    Raises:
        ConfigError: The algorithm is for tasks of the other number of levels.
    """
    data, model, bilevel = experiment.data, experiment.model, experiment.bilevel
    if bilevel is None:
        task = make_task(data, model)
    else:
        task = make_bilevel_task(data, model, bilevel)
    name = algorithm_name(type(experiment.algorithm))
    try:
        return algorithms[name].build(experiment.algorithm, task), task
    except AttributeError as error:
        if error.obj is not task:
            raise
        if bilevel is None:
            levels, fix = "one level", "Add [bilevel] with task = ..."
        else:
            levels, fix = "two levels", "Leave [bilevel] out"
        raise ConfigError(
            f"algorithm.name: {name!r} needs task.{error.name}, which a task of "
            f"{levels} does not have. {fix}, or choose another algorithm."
        ) from error
