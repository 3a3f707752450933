"""A tier's round: its clients' mean model, and what each one's says of public examples.

All clients of a tier have one architecture, and FedAvg is among them alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import fad
from algorithms._distill import Loss, Public, at_clients
from algorithms._server_step import Weighting, move, weigh


class TierResult(NamedTuple):
    """What the clients of one architecture give.

    Attributes:
        params: The mean of their models.
        loss: Their mean loss, and the weight of them all.
        said: Each client's ``(log-probabilities [P, C], 1 if it has examples else 0)``.
    """

    params: Any
    loss: fad.Coverage
    said: fad.AtClients


def ensemble_round(
    public: Public,
    loss: Loss,
    client: optax.GradientTransformation,
    weighting: Weighting,
) -> Callable[[Any, fad.AtClients, Any], TierResult]:
    """Return ``round(params, part, rows)``: FedAvg among clients of an architecture."""

    @fad.program
    def round(params, part, rows):
        def work(batches, rows):
            local = fad.local.train(params, batches, loss=loss, optimizer=client)
            weight, _ = weigh(local.delta, local.num_examples, weighting, "refuse")
            there = (local.num_examples > 0).astype(jnp.float32)
            said = public.log_probabilities(loss, local.params, rows)
            return (local.delta, local.loss), weight, (said, there)

        sent, weights, said = fad.map(work, part, rows)
        delta, mean = fad.weighted_mean(sent, weights)
        return TierResult(
            move(params, delta, 1.0), fad.Coverage(mean, fad.sum(weights)), said
        )

    return lambda params, part, rows: round(params, part, at_clients(rows, part))
