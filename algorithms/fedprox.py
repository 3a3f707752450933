"""FedProx: a proximal term keeps the clients' models near the global one.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (Algorithm 2,
with the local objective of Eq. 2). Round t, from the global model x:

    each client i:  x_i <- local steps from x on  f_i(z) + mu/2 |z - x|^2
    server:         x <- x + eta * sum_i w_i (x_i - x) / sum_i w_i

The paper samples by examples and averages evenly; here it is as in FedAvg, mu = 0. Its
rule for an ``adaptive`` mu (Section 5.3.2), which climbs if cohorts differ in loss, is

    the cohort's loss is above the last:  mu <- mu + 0.1
    it fell for the fifth time in a row:  mu <- max(mu - 0.1, 0), counting anew
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._proximal import proximal
from algorithms._ranges import check_range
from algorithms._server_step import Weighting, server_step, weigh
from algorithms._taking_part import Nonfinite, cohort_metrics


class State(NamedTuple):
    """The server's state; ``fallen`` and ``last`` are of the adaptive rule."""

    params: Any
    server: Any
    fallen: jax.Array  # the falls of the loss since it rose; -1 before the first round
    mu: jax.Array
    last: jax.Array  # the last round's loss; 3e38 before the first


def fedprox(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    mu: Any,
    adaptive: bool = False,
    server_lr: Any = 1.0,
    weighting: Weighting = "examples",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedProx, with the arguments of ``fedavg.fedavg`` and its own.

    ``client``'s gradient has the proximal term's, of weight ``mu`` or, if ``adaptive``,
    from that on. ``nonfinite`` refuses or excludes updates that are not finite.

    Returns:
        The algorithm; its metrics are ``train_loss``, without the proximal term,
        ``excluded_clients``, ``server_lr``, and ``mu``, which this round had.
    """

    def init(key):
        x = init_params(key)
        return State(x, server.init(x), jnp.array(-1), *jnp.array((mu, 3e38), float))

    @fad.program
    def step(state, cohort, key):
        x = state.params

        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            near = optax.chain(proximal(state.mu), client)
            local = fad.local.train(x, batches, loss=loss, optimizer=near, key=own)
            sent = local.delta, local.loss
            return sent, weigh(sent, local.num_examples, weighting, nonfinite)

        (delta, losses), (weights, left_out) = fad.map(client_work, cohort)
        mean = fad.weighted_mean(delta, weights)
        params, memory = server_step(x, mean, state.server, server, server_lr)
        metrics = cohort_metrics(losses, weights, left_out)
        metrics |= {"server_lr": server_lr, "mu": state.mu}
        state = _adapt(state, metrics["train_loss"], weights) if adaptive else state
        return state._replace(params=params, server=memory), metrics

    return fad.Algorithm(init, step)


def _adapt(state: State, loss: jax.Array, weights: fad.AtClients) -> State:
    """Move mu by a round's loss, which a round without examples does not have."""
    loss = jnp.where(fad.sum(weights) > 0, loss.astype(state.last.dtype), state.last)
    rises, falls = loss > state.last, loss < state.last
    fallen = jnp.where(falls, state.fallen + 1, jnp.where(rises, 0, state.fallen))
    mu = jnp.where(rises, state.mu + 0.1, state.mu)
    mu = jnp.where(fallen == 5, jnp.maximum(mu - 0.1, 0), mu)
    return state._replace(mu=mu, fallen=jnp.where(fallen == 5, 0, fallen), last=loss)


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and those of the proximal term."""

    mu: float = 0.01
    adaptive: bool = False

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "[0, inf)", "mu")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    names = ("mu", "adaptive", "server_lr", "weighting", "nonfinite")
    options = {name: getattr(config, name) for name in names}
    return fedprox(task.loss, task.init, server=server, client=client, **options)
