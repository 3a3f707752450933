"""Ditto: a model of its own at each client, drawn towards the global one.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML
2021 (Algorithm 1). The personal models solve min_v f_i(v) + lam/2 |v - x|^2 while the
global model x is trained as without them, here by FedAvg:

    each client i:  x_i <- local steps from x
                    v_i <- v_i - a (grad f_i(v_i) + lam (v_i - x))   a step per batch
    server:         x <- x + eta * sum_i w_i (x_i - x) / sum_i w_i

Both go through the same batches. v_i is what a client keeps from one of its rounds to
the next, from the first global model on, and is sent to nobody: a sum has its loss, a
number. lam = 0 is local training alone; the larger lam, the nearer v_i is to x.
With ``nonfinite = "exclude"`` v_i stays if either model is not finite; a personal one
that is not does not keep its client from the global one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

import fad
from algorithms import fedavg
from algorithms._proximal import proximal
from algorithms._ranges import check_range
from algorithms._server_step import Weighting, server_step, weigh
from algorithms._taking_part import Nonfinite, cohort_metrics, where
from algorithms.fedavg import State


def ditto(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    personal: optax.GradientTransformation,
    lam: Any,
    server_lr: Any = 1.0,
    weighting: Weighting = "examples",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build Ditto, with the arguments of ``fedavg.fedavg`` and its own.

    ``personal`` is the optimizer of v_i, whose gradient has the term's of weight
    ``lam``. ``nonfinite`` refuses or excludes what is not finite.

    Returns:
        The algorithm, with the personal model as the client's memory; its metrics are
        ``train_loss`` and ``personal_loss``, of either model before each of its local
        steps, ``excluded_clients`` (from the global model), ``excluded_personal`` (own
        models that are not finite), and ``server_lr``.
    """

    def init(key):
        params = init_params(key)
        return State(params, server.init(params))

    @fad.program
    def step(state, cohort, key, memory):
        x = state.params
        drawn = optax.chain(proximal(lam, x), personal)

        def client_work(batches, v):
            noise = fad.local.client_key(key, batches.client) if random_loss else None

            def train(start, optimizer):
                return fad.local.train(
                    start, batches, loss=loss, optimizer=optimizer, key=noise
                )

            def weighed(local):
                found = local.delta, local.loss
                return found, *weigh(found, local.num_examples, weighting, nonfinite)

            shared, own = weighed(train(x, client)), train(v, drawn)
            (_, seen), *who = weighed(own)
            new = where((shared[1] > 0) & (who[0] > 0), own.params, v)
            return shared, (seen, *who), new

        shared, alone, memory = fad.map(client_work, cohort, memory)
        (delta, losses), weights, left_out = shared
        mean = fad.weighted_mean(delta, weights)
        params, moments = server_step(x, mean, state.server, server, server_lr)
        metrics = cohort_metrics(losses, weights, left_out) | {"server_lr": server_lr}
        own = cohort_metrics(*alone)
        metrics["personal_loss"] = own["train_loss"]
        metrics["excluded_personal"] = own["excluded_clients"]
        return State(params, moments), metrics, memory

    return fad.Algorithm(init, step, init_client=lambda state: state.params)


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and those of the personal models."""

    personal_lr: float = 0.1
    lam: float = 1.0

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, inf)", "personal_lr")
        check_range(self, "[0, inf)", "lam")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    names = ("lam", "server_lr", "weighting", "nonfinite")
    options = {name: getattr(config, name) for name in names}
    personal = optax.sgd(config.personal_lr)
    models = {"server": server, "client": client, "personal": personal}
    return ditto(task.loss, task.init, **models, **options)
