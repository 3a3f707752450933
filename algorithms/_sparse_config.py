"""The options of FedAvg whose clients hold some of the weights."""

from dataclasses import dataclass

from algorithms._client_config import ClientConfig
from algorithms._ranges import check_range
from algorithms._server_step import Weighting


@dataclass(frozen=True)
class BaseConfig(ClientConfig):
    """The options of the rounds: ``densities`` are the shares of weights by tier."""

    densities: tuple[float, ...] = (1.0, 0.5, 0.25)
    server_lr: float = 1.0
    weighting: Weighting = "examples"
    labels: bool = False

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, inf)", "server_lr")
        if not self.densities or not all(0 < share <= 1 for share in self.densities):
            raise ValueError(
                f"densities: expected some in (0, 1], got {self.densities!r}"
            )
