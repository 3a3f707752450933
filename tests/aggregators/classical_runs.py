"""Rounds of an aggregator on updates that are given, with the clients' memories."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fad
from fad.aggregators import Aggregator, aggregate


class Rounds(NamedTuple):
    """What came out: a step and metrics per round, and what is kept at the end."""

    steps: list[Any]
    metrics: list[dict[str, Any]]
    state: Any
    memories: Any


def one_round(aggregator: Aggregator, nonfinite: Any = "refuse") -> Any:
    """Return a round of ``aggregate`` as a fad program, for a model of zeros."""

    @fad.program
    def step(updates, weights, clients, memories, state, key):
        params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), updates.unsafe_gather())
        kept = {"theta": aggregator.init_theta(key), "state": state}
        return aggregate(
            aggregator,
            updates,
            weights,
            memories=memories,
            params=params,
            key=key,
            clients=clients,
            nonfinite=nonfinite,
            **kept,
        )

    return step


def arguments(aggregator: Aggregator, updates: Any, weights: Any) -> tuple[Any, ...]:
    """Return the arguments of ``one_round`` at first, for all the clients."""
    updates = jax.tree.map(jnp.asarray, updates)
    params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), updates)
    n = len(weights)
    first = aggregator.init_client(params)
    memories = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * n), first)
    marked = (updates, jnp.asarray(weights), jnp.arange(n), memories)
    marked = [fad.AtClients.tree_unflatten(None, (x,)) for x in marked]
    return *marked, aggregator.init(params), jax.random.key(0)


def rounds(
    aggregator: Aggregator,
    updates: Any,
    weights: Any,
    ids: Any,
    *,
    nonfinite: Any = "refuse",
) -> Rounds:
    """Aggregate in rounds ``t``, each with the clients ``ids[t]`` alone.

    ``updates`` is a list of trees ``[N, *s]``, one per round, and ``weights`` is
    ``[N]``; the key of round ``t`` is ``jax.random.key(t)``.
    """
    step = jax.jit(one_round(aggregator, nonfinite))
    *_, memories, state, _ = arguments(aggregator, updates[0], weights)
    table, weights = memories.unsafe_gather(), jnp.asarray(weights)
    steps, metrics = [], []
    for t, some in enumerate(map(np.asarray, ids)):
        own = (updates[t], weights, jnp.arange(len(weights)), table)
        own = jax.tree.map(lambda x, i=some: jnp.asarray(x)[i], own)
        own = [fad.AtClients.tree_unflatten(None, (x,)) for x in own]
        done = step(*own, state, jax.random.key(t))
        state, new = done.state, done.memories.unsafe_gather()
        table = jax.tree.map(lambda x, y, i=some: x.at[i].set(y), table, new)
        steps.append(done.step)
        metrics.append(done.metrics)
    return Rounds(steps, metrics, state, table)
