"""FedAvg with an aggregator that was meta-trained: its step is a small network's.

One round, from the global model x and frozen theta:

    each client i:  d_i <- a few local steps from x on its own data, minus x
                    m_i  = client(d_i)            for ``learned`` d_i, d_i^2, sign d_i
    server:         m    = sum_i w_i m_i / sum_i w_i
                    x   <- x + server(theta, m, memory)

``python -m algorithms meta-train configs/meta_learned.toml`` learns theta by
differentiating through training runs (see ``fad.experiment.meta_train``), and writes
the folder that ``theta`` names. Without one, the theta that lies beside this file is
used, which that command made.

After Metz et al., "Practical tradeoffs between memory, compute, and performance in
learned optimizers" (2022), with the server in the place of an optimizer, and what sums
over clients can give in the place of a gradient.
"""

from dataclasses import dataclass
from pathlib import Path

import optax

import fad
from algorithms.aggregated_fedavg import aggregated_fedavg
from algorithms.fedavg import Weighting
from fad import aggregators

SHIPPED = Path(__file__).with_suffix(".npz")


@dataclass(frozen=True)
class Config:
    """The options.

    Attributes:
        theta: The folder of a meta-training, or the file of a frozen aggregator;
            without one, the theta that comes with this file.
        horizon: The length of training that the aggregator is told; without it, that
            of its meta-training.
        client_lr: The clients' step.
        client_momentum: The clients' momentum.
        weighting: Weigh clients by their examples, or all the same.
    """

    theta: str | None = None
    horizon: int | None = None
    client_lr: float = 0.1
    client_momentum: float = 0.0
    weighting: Weighting = "examples"

    def __post_init__(self):
        """Check the ranges."""
        if self.client_lr <= 0:
            raise ValueError(f"client_lr: expected > 0, got {self.client_lr!r}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon: expected >= 1, got {self.horizon!r}")
        if not 0 <= self.client_momentum < 1:
            raise ValueError(
                f"client_momentum: expected in [0, 1), got {self.client_momentum!r}"
            )


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    path = config.theta or SHIPPED
    aggregator, theta = aggregators.load(path, rounds=config.horizon)
    return aggregated_fedavg(
        task.loss,
        task.init,
        aggregator=aggregator,
        theta=theta,
        client=optax.sgd(config.client_lr, momentum=config.client_momentum or None),
        weighting=config.weighting,
    )
