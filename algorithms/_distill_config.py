"""The options that algorithms with distillation share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optax

from algorithms._client_config import ClientConfig
from algorithms._distill import Distillation
from algorithms._ranges import check_range


@dataclass(frozen=True)
class BaseConfig(ClientConfig):
    """The options of local training and of distillation."""

    widths: tuple[float, ...] = (1.0, 0.5, 0.25)
    public_examples: int = 512
    public_batch: int = 64
    distill_steps: int = 100
    distill_lr: float = 1e-3

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, inf)", "distill_lr")
        check_range(self, "[1, inf)", "public_examples", "public_batch")
        check_range(self, "[1, inf)", "distill_steps")
        check_widths(self.widths)

    def options(self) -> dict[str, Any]:
        """Return the arguments that all these algorithms share; Adam distils."""
        return {
            "widths": self.widths,
            "distillation": self.distillation(optax.adam),
        }

    def distillation(
        self, optimizer: Callable[[float], optax.GradientTransformation]
    ) -> Distillation:
        """Return how to distil with an optimizer."""
        sizes = self.public_examples, self.public_batch, self.distill_steps
        return Distillation(optimizer(self.distill_lr), *sizes)


def check_widths(widths: Sequence[float]) -> None:
    """Refuse widths that are no architectures of their own each.

    Raises:
        ValueError: There is none, one twice, or one outside (0, 1].
    """
    good = all(0 < width <= 1 for width in widths)
    if not widths or not good or len(set(widths)) < len(widths):
        raise ValueError(
            f"widths: expected some in (0, 1], each once, got {tuple(widths)!r}"
        )
