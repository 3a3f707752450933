"""One round of an inner run, as a function of what is meta-learned."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fad._errors import ConfigError, describe
from fad.aggregators import Aggregator, combined
from fad.experiment._meta_config import MetaTraining
from fad.local import client_key, evaluate, train
from fad.placement import program
from fad.primitives import map as at_clients
from fad.primitives import weighted_mean


class Inner(NamedTuple):
    """The state of an inner run.

    Attributes:
        params: The global model.
        server: The aggregator's state.
        client_lr: ``[]``, the clients' step, data so that one compilation serves all.
        done: ``[]`` int32, the rounds so far.
    """

    params: Any
    server: Any
    client_lr: jax.Array
    done: jax.Array


def make_round(
    aggregator: Aggregator, loss: Callable[..., jax.Array], config: MetaTraining
) -> Callable[..., tuple[Inner, jax.Array]]:
    """Return ``round(theta, inner, cohort, key) -> (inner, objective)``.

    The objective is the cohort's mean loss at the model it receives, or the loss's
    logarithm, what the rounds before made of it, times the round's weight.
    """
    power, rounds = config.emphasis, config.rounds

    @program
    def one_round(theta, inner, cohort, key):
        def client_work(batches):
            own = client_key(key, batches.client)
            before, seen = evaluate(inner.params, batches, loss=loss)
            sgd = optax.sgd(inner.client_lr)
            local = train(inner.params, batches, loss=loss, optimizer=sgd)
            message, _ = aggregator.client(
                theta, inner.server, memory, local.delta, own
            )
            return message, before, seen

        memory = _no_memory(aggregator, inner.params)
        message, before, seen = at_clients(client_work, cohort)
        mean = combined(aggregator, message, seen)
        step, server = aggregator.server(theta, inner.server, mean, inner.params, key)
        params = jax.tree.map(jnp.add, inner.params, step)
        objective = weighted_mean(before, seen)
        objective = jnp.log(objective) if config.objective == "log_loss" else objective
        part = (inner.done.astype(objective.dtype) + 0.5) / rounds
        weight = (1 + power) * part**power
        inner = Inner(params, server, inner.client_lr, inner.done + 1)
        return inner, weight * objective

    return one_round


def _no_memory(aggregator: Aggregator, params: Any) -> Any:
    """Return a client's memory, which must hold nothing.

    Raises:
        ConfigError: It holds something.
    """
    kept = jax.eval_shape(aggregator.init_client, params)
    if leaves := jax.tree.leaves(kept):
        raise ConfigError(
            "meta-training: expected an aggregator that keeps nothing at the clients, "
            f"got one that keeps {', '.join(map(describe, leaves))}. Its clients are "
            "new ones in every round; leave the part with a memory out."
        )
    return kept
