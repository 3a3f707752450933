"""The classical algorithms and aggregators, against rounds and bytes.

What is drawn is the accuracy of each run against its rounds of communication and
against the bytes of a client that takes part in all of them, both from ``fad.plan``.
"""

from collections.abc import Sequence

from benchmarks._classical_studies import STUDIES as STUDIES
from benchmarks._study_runs import run_study


def main(argv: Sequence[str]) -> int:
    """Run what is missing of a study, and write its page."""
    return run_study("classical", argv)
