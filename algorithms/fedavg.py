"""FedAvg and the FedOpt family.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017 (Algorithm 1); Reddi et al., "Adaptive Federated Optimization", ICLR
2021 (Algorithm 2), of which FedAvgM, FedAdagrad, FedAdam and FedYogi are configured.

Round t, from the global model x:

    each client i:  x_i <- a few local steps from x on its own data
    server:         D = sum_i w_i (x - x_i) / sum_i w_i
                    x <- x - eta * direction(D)        direction: an optax optimizer

FedSGD is one local step per round (``epochs = 1``, and a batch that holds every
example), where ``D`` is the client step times the gradient of the mean loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

import fad
from algorithms._optimizers import ServerOptimizer, server_optimizer
from algorithms._ranges import check_range
from algorithms._server_step import Weighting as Weighting
from algorithms._server_step import screened, server_step, weigh
from algorithms._taking_part import Nonfinite


class State(NamedTuple):
    """The server's state: the global model and the server optimizer's."""

    params: Any
    server: Any


def fedavg(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedAvg with any server and client optimizer of optax.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row; with
            ``random_loss`` it is ``loss(params, examples, key)``.
        init_params: ``init_params(key) -> params``.
        server: Turns the mean update, as a gradient, into a direction.
        client: The clients' optimizer; it starts afresh every round.
        server_lr: The server step eta, times the direction.
        weighting: Weigh clients by their examples, or all the same.
        nonfinite: Whether to ``refuse`` a round with an update that is not finite, or
            ``exclude`` its client.
        random_loss: Whether the loss takes a key (dropout, augmentation).

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        ``server_lr`` and, where clients may be left out, ``excluded_clients``.
    """

    def init(key):
        params = init_params(key)
        return State(params, server.init(params))

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            local = fad.local.train(
                state.params, batches, loss=loss, optimizer=client, key=own
            )
            sent = local.delta, local.loss
            return sent, weigh(sent, local.num_examples, weighting, nonfinite)

        sent, who = fad.map(client_work, cohort)
        delta, train_loss = fad.weighted_mean(sent, who[0])
        model = server_step(state.params, delta, state.server, server, server_lr)
        metrics = {"train_loss": train_loss, "server_lr": server_lr}
        return State(*model), screened(metrics, nonfinite, sent[1], *who)

    return fad.Algorithm(init, step)


def average(x: Any, num_examples: Any, weighting: Weighting) -> Any:
    """Average over clients; an empty client never counts."""
    if weighting == "uniform":
        num_examples = fad.map(lambda n: (n > 0).astype(n.dtype), num_examples)
    return fad.weighted_mean(x, num_examples)


@dataclass(frozen=True)
class BaseConfig:
    """The options of FedAvg's kin, which need not be able to leave clients out."""

    server: ServerOptimizer = "sgd"
    server_lr: float = 1.0
    server_b1: float = 0.9
    server_b2: float = 0.99
    server_eps: float = 1e-3
    client_lr: float = 0.1
    client_momentum: float = 0.0
    weighting: Weighting = "examples"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "server_lr", "server_eps", "client_lr")
        check_range(self, "[0, 1)", "server_b1", "server_b2", "client_momentum")


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of FedAvg and the FedOpt family."""

    nonfinite: Nonfinite = "refuse"


def optimizers(
    config: BaseConfig,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Return the server's and the clients' optimizer of a config."""
    server = server_optimizer(
        config.server, b1=config.server_b1, b2=config.server_b2, eps=config.server_eps
    )
    return server, optax.sgd(config.client_lr, momentum=config.client_momentum or None)


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = optimizers(config)
    return fedavg(
        task.loss,
        task.init,
        server=server,
        client=client,
        server_lr=config.server_lr,
        weighting=config.weighting,
        nonfinite=config.nonfinite,
    )
