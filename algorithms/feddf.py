"""FedDF: ensemble distillation, for clients with models of several architectures.

Lin et al., "Ensemble Distillation for Robust Model Fusion in Federated Learning",
NeurIPS 2020 (Algorithm 3). The architectures are a task's widths, a tier each, and
each has a model x^a at the server:

    client k of a:  x_k <- local steps from x^a
    server:         x^a <- sum_k n_k x_k / sum_k n_k     over the clients of a
                    z(u) = mean_k z_k(u)                 logits, over all clients
                    N steps of Adam for each a, on public examples u:
                    x^a <- x^a - lr d/dx^a KL(softmax(z(u) / T) | softmax(z^a(u) / T))

The paper has T = 1 and its server evaluates the uploaded models. Here clients evaluate
theirs and send logits, that only sums see, besides the model: P C numbers more. Not
here are the stop of the steps by a validation set and the decay of lr.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._distill import Distillation, divergence, public_of
from algorithms._distill_config import BaseConfig
from algorithms._distill_round import ensemble_round
from algorithms._ranges import check_range
from algorithms._server_step import Weighting
from fad import submodels


class State(NamedTuple):
    """The server's state."""

    params: Any  # the model of the width 1
    narrow: tuple[Any, ...]  # those of the other widths
    rounds: jax.Array


def feddf(
    task: fad.data.Task,
    *,
    widths: Sequence[float],
    client: optax.GradientTransformation,
    distillation: Distillation,
    temperature: float = 1.0,
    weighting: Weighting = "examples",
) -> fad.Algorithm:
    """Build FedDF.

    Args:
        task: The task, with public examples (``validation``) and models of any width.
        widths: The width of each tier's model, the first of them 1.
        client: The clients' optimizer; it starts afresh every round.
        distillation: The server's, for each model.
        temperature: What logits are divided by, T.
        weighting: Weigh a tier's clients by their examples, or all the same.

    Returns:
        The algorithm, for cohorts whose tiers are in the order of the widths. Its
        metrics are ``train_loss`` and ``distill_loss``, the mean divergence before each
        step of distillation, over the models.
    """
    public = public_of(task, distillation)
    tasks = [task.at_width(width) for width in widths]
    rounds = [ensemble_round(public, t.loss, client, weighting) for t in tasks]

    def init(key):
        params, *narrow = (t.init(key) for t in tasks)
        return State(params, tuple(narrow), jnp.zeros((), jnp.int32))

    def step(state, cohort, key):
        del key
        rows, models = public.rows(state.rounds), (state.params, *state.narrow)
        parts = submodels.tiers(cohort, len(tasks))
        found = [
            train(model, part, rows)
            for train, model, part in zip(rounds, models, parts, strict=True)
        ]
        logits, there = submodels.merged([_mean(tier.said) for tier in found])
        teacher = jax.nn.log_softmax(logits / temperature)
        taught = []
        for t, tier in zip(tasks, found, strict=True):

            def objective(params, index, loss=t.loss):
                some = {name: x[index] for name, x in rows.items()}
                own = public.log_probabilities(loss, params, some)
                own = jax.nn.log_softmax(own / temperature)
                return divergence(teacher[index], own)

            taught.append(public.distil(tier.params, objective, there > 0))
        loss, _ = submodels.merged([tier.loss for tier in found])
        distill_loss = sum(local.loss for local in taught) / len(taught)
        params, *narrow = (local.params for local in taught)
        metrics = {"train_loss": loss, "distill_loss": distill_loss}
        return State(params, tuple(narrow), state.rounds + 1), metrics

    return fad.Algorithm(init, step)


@fad.program
def _mean(said: fad.AtClients) -> fad.Coverage:
    """Return the mean log-probabilities of clients with examples, and their number."""
    logits, there = said
    return fad.Coverage(fad.weighted_mean(logits, there), fad.sum(there))


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of FedDF."""

    weighting: Weighting = "examples"
    temperature: float = 1.0

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, inf)", "temperature")
        if self.widths[0] != 1:
            raise ValueError(
                "widths: expected 1.0 first, the model that is evaluated, got "
                f"{self.widths!r}"
            )


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    more = {"temperature": config.temperature, "weighting": config.weighting}
    return config.algorithm(feddf, task, **more)
