"""RABO and RAFBO on MNIST: accuracy against a client's FLOPs, memory and bytes.

FLOPs and bytes are those of ``fad.plan``, the mean over the clients of a cohort; memory
is that of the compiled step of one client.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._client_memory import client_memory
from benchmarks._pruned_page import write_page
from benchmarks._pruned_studies import STUDIES as STUDIES
from benchmarks._study import Study
from benchmarks._study_runs import results_path, run_study


def main(argv: Sequence[str]) -> int:
    """Run what is missing of a study, and write its page."""
    return run_study("pruned", argv, write=write)


def write(command: str, name: str, study: Study, found: dict[str, Any]) -> None:
    """Measure the clients' memory where it is not known, and write the page."""
    if _add_memory(study, found):
        results_path(command, name).write_text(json.dumps(found) + "\n")
    write_page(command, name, study, found)


def _add_memory(study: Study, found: Mapping[str, Any]) -> bool:
    """Add ``{width: bytes}`` to each series that lacks it; say whether any did."""
    missing = [label for label in study.series if label in found]
    missing = [label for label in missing if "memory" not in found[label]]
    for label in missing:
        found[label]["memory"] = client_memory(study, study.series[label])
        print(label, found[label]["memory"], flush=True)
    return bool(missing)
