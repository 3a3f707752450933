"""The configuration of a task of two levels."""

import dataclasses
import math
from typing import Any, Literal

from fad.experiment._task_config import at_least

BilevelName = Literal[
    "hyper_representation", "imbalance", "hyper_cleaning", "regularisation"
]

# What the lower level's regulariser is times, unless told otherwise.
_PENALTIES = {
    "hyper_representation": 0.05,
    "hyper_cleaning": 1e-3,
    "regularisation": 1e-3,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BilevelConfig:
    """Which problem of two levels the clients' examples make.

    Attributes:
        task: ``hyper_representation`` (the lower level learns a model's last layer, the
            upper one all before it); ``imbalance`` (the lower level learns a model
            whose logits the upper one scales and shifts class by class);
            ``hyper_cleaning`` (a model, and the weight of each of its examples);
            ``regularisation`` (logistic regression, and how strongly the weights of
            each feature are drawn to 0).
        upper_fraction: Share of every client's examples, of every label, that are the
            upper level's.
        upper_batch_size: Examples of the upper level in a batch; without it, all that a
            client has.
        upper_epochs: Passes over a client's examples of the upper level.
        weighting: Clients count ``uniform``, all the same, or by their ``examples``.
        header: The last layer of ``hyper_representation``, by its name in the model.
        penalty: Strength of the lower level's regulariser: times the norm of each array
            of the last layer (0.05 without it); times half the squared weights of
            ``hyper_cleaning`` (0.001); where ``regularisation`` starts (0.001).
    """

    task: BilevelName
    upper_fraction: float = 0.5
    upper_batch_size: int | None = None
    upper_epochs: int = 1
    weighting: Literal["uniform", "examples"] = "uniform"
    header: str = "header"
    penalty: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and that each option has something to act on."""
        if not 0 < self.upper_fraction < 1:
            got = self.upper_fraction
            raise ValueError(f"upper_fraction must be in (0, 1), got {got}")
        at_least(self, 1, "upper_epochs")
        if self.upper_batch_size is not None:
            at_least(self, 1, "upper_batch_size")
        if self.header != type(self).header and self.task != "hyper_representation":
            raise ValueError("header is for task 'hyper_representation' alone")
        if self.penalty is None:
            return
        if self.task not in _PENALTIES:
            raise ValueError(f"penalty: task {self.task!r} has no regulariser")
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"penalty must be > 0 and finite, got {self.penalty}")

    @property
    def strength(self) -> float:
        """The penalty, or the task's usual one."""
        return _PENALTIES[self.task] if self.penalty is None else self.penalty

    def cohort_options(self) -> dict[str, Any]:
        """Return the options of ``fad.data.Levels.cohort`` that it sets."""
        return {
            "upper_batch_size": self.upper_batch_size,
            "upper_epochs": self.upper_epochs,
        }
