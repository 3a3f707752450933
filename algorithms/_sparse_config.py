"""The options of FedAvg whose clients hold some of the weights."""

from dataclasses import dataclass
from typing import Any

from algorithms._optimizers import with_client
from algorithms._ranges import check_range
from algorithms._server_step import Weighting


@dataclass(frozen=True)
class BaseConfig:
    """The options of the rounds: ``densities`` are the shares of weights by tier."""

    densities: tuple[float, ...] = (1.0, 0.5, 0.25)
    client_lr: float = 0.1
    client_momentum: float = 0.0
    server_lr: float = 1.0
    weighting: Weighting = "examples"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "client_lr", "server_lr")
        check_range(self, "[0, 1)", "client_momentum")
        if not self.densities or not all(0 < share <= 1 for share in self.densities):
            raise ValueError(
                f"densities: expected some in (0, 1], got {self.densities!r}"
            )

    def options(self) -> dict[str, Any]:
        """Return the arguments of an algorithm's builder."""
        return with_client(vars(self))
