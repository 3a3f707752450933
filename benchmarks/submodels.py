"""FedSep's table 1, reduced: clients of unequal size, accuracy against their FLOPs.

FLOPs and bytes are those of ``fad.plan``, the mean over the clients of a cohort.
"""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks._report import ROOT
from benchmarks._study import Series, Study
from benchmarks._study_runs import results_path, run_study
from benchmarks._submodel_choice import choice
from benchmarks._submodel_page import OWN, write_page
from benchmarks._submodel_studies import STUDIES as STUDIES


def main(argv: Sequence[str]) -> int:
    """Run what is missing of a study, and write its page."""
    return run_study("submodels", argv, write=write)


def write(command: str, name: str, study: Study, found: dict[str, Any]) -> None:
    """Add to FedSep's runs what is missing of its costs and choice; write the page."""
    own = found.get(OWN, {})
    if own and "between" not in own:
        own["between"] = between(study, study.series[OWN])
    if own and "choice" not in own:
        own["choice"] = choice(command, name, study, OWN)
    results_path(command, name).write_text(json.dumps(found) + "\n")
    write_page(command, name, study, found)


def between(study: Study, series: Series) -> dict[str, Any]:
    """Return the FLOPs and bytes of a client in a round without a search for masks."""
    from algorithms import ALGORITHMS
    from fad.experiment import load
    from fad.experiment._plan import plan_step
    from fad.experiment._tasks import build

    values = {**next(iter(study.splits.values())), **series.set}
    values["algorithm"] = {**series.algorithm, "refresh": 0}
    path = ROOT / "configs" / study.config
    experiment = load(path, ALGORITHMS, overrides=values)
    cost = plan_step(experiment, *build(ALGORITHMS, experiment)).cost()
    sent = [int(cost.bytes_down), int(cost.bytes_up)]
    return {"flops": int(cost.client_flops), "bytes": sent}
