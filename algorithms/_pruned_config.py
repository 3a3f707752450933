"""The options of RABO and RAFBO, and the tiers of a task that they say."""

from dataclasses import dataclass
from typing import Any

from algorithms._pruned import Average, Form, Tier
from algorithms._pruned_structured import Rule, structured
from algorithms._ranges import check_range


@dataclass(frozen=True)
class BaseConfig:
    """The options; no lower widths or rule: those of the upper level."""

    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    lower_widths: tuple[float, ...] = ()
    extraction: Rule = "static"
    lower_extraction: Rule | None = None
    form: Form = "difference"
    average: Average = "coverage"
    lower_lr: float = 0.05
    linear_lr: float = 0.05
    upper_lr: float = 0.05
    delta: float = 5e-3
    penalty: float = 10.0

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "linear_lr", "upper_lr")
        check_range(self, "(0, inf)", "delta", "penalty")
        for name in ("widths", "lower_widths"):
            widths = getattr(self, name)
            if not all(0 < width <= 1 for width in widths):
                raise ValueError(f"{name}: expected shares in (0, 1], got {widths!r}")
        if not self.widths or len(self.lower_widths) not in (0, len(self.widths)):
            raise ValueError(
                "widths: expected one for each tier, and as many lower_widths or none; "
                f"got {self.widths!r} and {self.lower_widths!r}"
            )

    def tiers(self, task: Any) -> list[Tier]:
        """Return a task's tiers."""
        below = self.lower_extraction or self.extraction
        return [
            structured(task, *widths, rule=self.extraction, lower_rule=below)
            for widths in zip(
                self.widths, self.lower_widths or self.widths, strict=True
            )
        ]

    def options(self) -> dict[str, Any]:
        """Return the arguments of the algorithm besides its tiers."""
        names = ("form", "average", "lower_lr", "linear_lr", "upper_lr")
        names += ("delta", "penalty")
        return {name: getattr(self, name) for name in names}
