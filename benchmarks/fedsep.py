"""FedSep and compressed FedAvg: accuracy against the communication rate.

Figure 2 of the paper, smaller. What a client sends and gets is that of ``fad.plan``.
"""

from collections.abc import Sequence

from benchmarks._fedsep_page import write_page
from benchmarks._fedsep_studies import STUDIES as STUDIES
from benchmarks._study_runs import run_study


def main(argv: Sequence[str]) -> int:
    """Run what is missing of a study, and write its page."""
    return run_study("fedsep", argv, write=write_page)
