"""The memory of one client, by its width, as the compiler plans it."""

import dataclasses
import functools
from typing import Any

from benchmarks._report import ROOT
from benchmarks._study import Series, Study


def client_memory(study: Study, series: Series) -> dict[str, int]:
    """Return the bytes of a step of one client, for each width of a series.

    Arguments and temporaries of the compiled step of a cohort of one, which is the
    largest client of the federation, on the model of its width: with its examples.
    """
    from algorithms import ALGORITHMS
    from fad.experiment import load

    path = ROOT / "configs" / study.config
    values = {**next(iter(study.splits.values())), **series.set}
    values["algorithm"] = dict(series.algorithm)
    experiment = load(path, ALGORITHMS, overrides=values)
    options, one = experiment.algorithm, {}
    widths = getattr(options, "widths", (1.0,))
    if hasattr(options, "widths"):  # what the model's size does not depend on
        one = {"widths": (1.0,), "lower_widths": (), "average": "coverage"}
        one |= {"extraction": "static", "lower_extraction": None}
        widths = options.lower_widths or widths
    options = dataclasses.replace(options, **one)
    experiment = dataclasses.replace(experiment, cohort=1, tiers=1, algorithm=options)
    experiment = dataclasses.replace(experiment, tiers_by="client")
    return {f"{width:g}": _compiled(experiment, width) for width in widths}


@functools.cache
def _compiled(experiment: Any, width: float) -> int:
    """Return the bytes of a client's compiled step on a model of a width."""
    import jax

    from algorithms import ALGORITHMS
    from fad.experiment._config import algorithm_name
    from fad.experiment._plan import step_arguments
    from fad.experiment._tasks import build

    _, task = build(ALGORITHMS, experiment)
    narrow = task.at_width(width)
    name = algorithm_name(type(experiment.algorithm))
    algorithm = ALGORITHMS[name].build(experiment.algorithm, narrow)
    arguments = step_arguments(experiment, algorithm, narrow)
    found = jax.jit(algorithm.step).lower(*arguments).compile().memory_analysis()
    assert found is not None  # only where a backend has none to tell
    return int(found.argument_size_in_bytes + found.temp_size_in_bytes)
