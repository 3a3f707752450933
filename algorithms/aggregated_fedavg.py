"""FedAvg with any aggregators of ``fad.aggregators``, one after the other.

One round, from the global model x:

    each client i:  d_i <- a few local steps from x on its own data, minus x
                    m_i <- what the aggregators' client sides make of d_i
    server:         D = what they make of a weighted mean, or of another sum, of the m_i
                    x <- x - eta * direction(-D)        direction: an optax optimizer

``aggregators = ["clip(bound=1.0)", "top_k(k=0.01)"]`` clips, then compresses. What a
client keeps for an aggregator, such as the error of its compression, is in its memory.
Without an aggregator this is FedAvg.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._server_step import Weighting, server_step
from algorithms._taking_part import Nonfinite, cohort_loss
from fad import aggregators
from fad.aggregators import Aggregator


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    theta: Any  # the aggregator's parameters, which stay as they are
    server: Any  # the aggregator's memory
    optimizer: Any = ()  # the server optimizer's


def aggregated_fedavg(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    aggregator: Aggregator,
    theta: Any = None,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation | None = None,
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedAvg with any aggregator, with the arguments of ``fedavg.fedavg``.

    ``theta`` is the aggregator's parameters, those it starts with if left out. Without
    a ``server`` optimizer the aggregator's step is added.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        and the aggregator's. The aggregator's memory, if it has any, is the client's.
    """
    server = optax.sgd(1.0) if server is None else server

    def init(key):
        params, own = init_params(key), theta
        if own is None:
            own = aggregator.init_theta(jax.random.fold_in(key, 1))
        return State(params, own, aggregator.init(params), server.init(params))

    def memory(state):
        return aggregator.init_client(state.params)

    @fad.program
    def step(state, cohort, key, memories=None):
        def work(batches):
            own = fad.local.client_key(_apart(key), batches.client)
            own = own if random_loss else None
            local = fad.local.train(
                state.params, batches, loss=loss, optimizer=client, key=own
            )
            n = local.num_examples
            n = (n > 0).astype(n.dtype) if weighting == "uniform" else n
            return local.delta, n, local.loss, batches.client

        updates, weights, losses, clients = fad.map(work, cohort)
        kept = fad.map(lambda n: memory(state), weights)
        options = {"state": state.server, "params": state.params, "theta": state.theta}
        options |= {"key": key, "clients": clients, "nonfinite": nonfinite}
        options["memories"] = kept if memories is None else memories
        done = aggregators.aggregate(aggregator, updates, weights, **options)
        params, moments = server_step(
            state.params, done.step, state.optimizer, server, server_lr
        )
        left_out = done.metrics.get("excluded_clients", jnp.zeros(()))
        metrics = {"train_loss": cohort_loss(losses, done.weights, left_out)}
        metrics |= done.metrics
        new = State(params, state.theta, done.state, moments)
        return (new, metrics) if memories is None else (new, metrics, done.memories)

    keeps = jax.tree.leaves(jax.eval_shape(lambda k: memory(init(k)), _KEY))
    return fad.Algorithm(init, step, init_client=memory if keeps else None)


def _apart(key: Any) -> Any:
    return jax.random.fold_in(key, 1)  # the aggregator draws from the key itself


_KEY = jax.eval_shape(lambda: jax.random.key(0))


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and the aggregators, the first nearest to the model."""

    aggregators: tuple[str, ...] = ()

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        made(self)


def made(config: Config) -> Aggregator:
    """Return the aggregator of a config."""
    parts = [aggregators.named(text) for text in config.aggregators]
    return aggregators.chain(*parts) if parts else Aggregator()


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    names = ("server_lr", "weighting", "nonfinite")
    options = {name: getattr(config, name) for name in names}
    models = {"aggregator": made(config), "server": server, "client": client}
    return aggregated_fedavg(task.loss, task.init, **models, **options)
