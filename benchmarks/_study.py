"""What a study is: several series of runs of one task, over seeds and splits."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Start = Literal["as configured", "all", "clean"]


@dataclass(frozen=True)
class Series:
    """One algorithm with its options, over all seeds.

    Attributes:
        algorithm: The ``[algorithm]`` table.
        steps: Steps of the algorithm, "epochs" in the papers.
        every: Steps between two evaluations.
        seconds: About how long a run takes on one core, to order the runs.
        set: Other values that replace the configuration's.
        splits: The splits it runs on; all of the study without them.
        part: ``paper``, or ``others``: what can be run apart.
        rounds: Rounds of a step, where ``fad.plan`` cannot count them.
        start: Where x begins: as the task says, or with weights of 1 for ``all``
            examples or for those with ``clean`` labels alone (hyper-cleaning).
    """

    algorithm: Mapping[str, Any]
    steps: int
    every: int = 10
    seconds: float = 60
    set: Mapping[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    part: Literal["paper", "others"] = "paper"
    rounds: int | None = None
    start: Start = "as configured"

    def settings(self) -> dict[str, Any]:
        """Return what the numbers depend on, as JSON holds it."""
        known = asdict(self)
        for name in ("seconds", "splits", "part", "rounds"):
            del known[name]
        return known


@dataclass(frozen=True)
class Study:
    """Series on one task.

    Attributes:
        title: The page's title.
        config: The file in ``configs/``.
        metric: The test metric that is drawn.
        splits: Values that replace the configuration's, by the name of the split.
        series: The algorithms.
        targets: Levels of the metric whose rounds are counted.
        about: Paragraphs for the page.
        others: Further metrics for the table.
        begin: ``(start, algorithm, experiment) -> algorithm``, what a series' ``start``
            means.
    """

    title: str
    config: str
    splits: Mapping[str, Mapping[str, Any]]
    series: Mapping[str, Series]
    targets: tuple[float, ...]
    about: str = ""
    metric: str = "accuracy"
    others: tuple[str, ...] = ()
    begin: Callable[[Start, Any, Any], Any] | None = None
