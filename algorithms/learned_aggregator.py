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

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms.fedavg import Weighting, average
from fad import aggregators

SHIPPED = Path(__file__).with_suffix(".npz")


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    theta: Any  # the aggregator's parameters, which stay as they are
    server: Any  # the aggregator's memory


def learned_aggregator(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    aggregator: aggregators.Aggregator,
    theta: Any,
    client: optax.GradientTransformation,
    weighting: Weighting = "examples",
) -> fad.Algorithm:
    """Build FedAvg with any aggregator.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        aggregator: What clients send, and what the server makes of it.
        theta: The aggregator's parameters.
        client: The clients' optimizer; it starts afresh every round.
        weighting: Weigh clients by their examples, or all the same.

    Returns:
        The algorithm; its metric is ``train_loss``, the loss before each local step.
    """

    def init(key):
        params = init_params(key)
        return State(params, theta, aggregator.init(params))

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client)
            local = fad.local.train(state.params, batches, loss=loss, optimizer=client)
            message = aggregator.client(state.theta, state.server, local.delta, own)
            return message, local.loss, local.num_examples

        message, losses, num_examples = fad.map(client_work, cohort)
        if weighting == "uniform":
            num_examples = fad.map(lambda n: (n > 0).astype(n.dtype), num_examples)
        mean = aggregator.combine(message, num_examples)
        train_loss = average(losses, num_examples, "examples")
        moved, memory = aggregator.server(
            state.theta, state.server, mean, state.params, key
        )
        params = jax.tree.map(jnp.add, state.params, moved)
        return State(params, state.theta, memory), {"train_loss": train_loss}

    return fad.Algorithm(init, step)


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
    return learned_aggregator(
        task.loss,
        task.init,
        aggregator=aggregator,
        theta=theta,
        client=optax.sgd(config.client_lr, momentum=config.client_momentum or None),
        weighting=config.weighting,
    )
