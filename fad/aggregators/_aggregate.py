"""One round's aggregation, from the clients' updates to the server's step."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fad.aggregators._aggregator import Aggregator, Message
from fad.local import client_key
from fad.placement import AtClients
from fad.primitives import map, sum, weighted_mean

PyTree = Any


class Aggregated(NamedTuple):
    """What an aggregation gives.

    Attributes:
        step: What to add to the params.
        state: The aggregator's state at the server.
        memories: What the cohort's clients keep, an ``AtClients`` value.
        weights: ``[n]``, the clients' weights, 0 of those that were left out.
        metrics: The aggregator's, and ``excluded_clients`` where clients may be.
    """

    step: PyTree
    state: Any
    memories: AtClients[Any]
    weights: AtClients[jax.Array]
    metrics: dict[str, jax.Array]


def aggregate(
    aggregator: Aggregator,
    updates: AtClients[PyTree],
    weights: AtClients[jax.Array],
    *,
    theta: Any,
    state: Any,
    memories: AtClients[Any],
    params: PyTree,
    key: jax.Array,
    clients: AtClients[jax.Array],
    nonfinite: Literal["refuse", "exclude"] = "refuse",
) -> Aggregated:
    """Aggregate the updates of a cohort; a piece of a fad program.

    A client of weight 0 does not count: nothing of its update reaches the result, and
    its memory stays as it was.

    Args:
        aggregator: The aggregator.
        updates: ``[n, *s]``, parameters after minus before.
        weights: ``[n]``, not negative.
        theta: What was learned, ``aggregator.init_theta(key)`` at first.
        state: The aggregator's state, ``aggregator.init(params)`` at first.
        memories: The clients', ``aggregator.init_client(params)`` at first.
        params: The model.
        key: The round's key.
        clients: ``[n]``, the clients' numbers, from which their keys are derived.
        nonfinite: Of a client whose update is not finite: ``exclude`` gives it the
            weight 0, and counts it; with ``refuse`` the step is NaN, which ends a run.

    Returns:
        The step, the new state and memories, and metrics.

    Raises:
        PlacementError: If a client value is none.

    Example:
        >>> import fad
        >>> mean = Aggregator()
        >>> @fad.program
        ... def step(updates, weights):
        ...     clients = fad.map(lambda w: jnp.int32(0), weights)
        ...     memories = fad.map(lambda w: mean.init_client(0.0), weights)
        ...     key = jax.random.key(0)
        ...     start = dict(theta=(), state=(), memories=memories, params=0.0)
        ...     done = aggregate(
        ...         mean, updates, weights, key=key, clients=clients, **start
        ...     )
        ...     return done.step
        >>> float(
        ...     step(fad.AtClients(jnp.array([1.0, 3.0])), fad.AtClients(jnp.ones(2)))
        ... )
        2.0
    """

    def send(update, weight, client, memory):
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(update)]
        bad = (weight > 0) & ~jnp.stack(finite).all()
        if nonfinite == "exclude":
            weight = jnp.where(bad, 0, weight)
        # Zeros also in the place of what an empty client may have computed.
        counts = weight > 0
        update = _where(counts, update, jax.tree.map(jnp.zeros_like, update))
        own = client_key(key, client)
        message, new = aggregator.client(theta, state, memory, update, own)
        return message, weight, _where(counts, new, memory), bad

    message, weight, memories, bad = map(send, updates, weights, clients, memories)
    mean = combined(aggregator, message, weight)
    step, state = aggregator.server(theta, state, mean, params, key)
    # Some are computed in more bits than the params have.
    step = jax.tree.map(lambda s, p: s.astype(jnp.result_type(p)), step, params)
    metrics = aggregator.metrics(state)
    count = sum(map(lambda b: b.astype(jnp.float32), bad))
    if nonfinite == "exclude":
        metrics = {**metrics, "excluded_clients": count}
    else:  # whatever the aggregator made of it
        step = jax.tree.map(lambda x: jnp.where(count > 0, jnp.nan, x), step)
    return Aggregated(step, state, memories, weight, metrics)


def combined(
    aggregator: Aggregator, messages: AtClients[Any], weights: AtClients[jax.Array]
) -> Any:
    """Combine the messages, and average what is reported with them.

    Args:
        aggregator: The aggregator.
        messages: ``[n, *s]``, of its client side.
        weights: ``[n]``, one weight per client.

    Returns:
        What its server side takes.

    Raises:
        PlacementError: If an argument is no client value.

    Example:
        >>> import fad
        >>> @fad.program
        ... def mean(messages, weights):
        ...     return combined(Aggregator(), messages, weights)
        >>> x, w = fad.AtClients(jnp.array([1.0, 4.0])), fad.AtClients(jnp.ones(2))
        >>> float(mean(x, w))
        2.5
    """
    if not isinstance(messages.unsafe_gather(), Message):
        return aggregator.combine(messages, weights, aggregator.total)
    value, report = messages
    mean = aggregator.combine(value, weights, aggregator.total)
    if not jax.tree.leaves(report):
        return Message(mean, report.unsafe_gather())
    counts = map(lambda w: (w > 0).astype(w.dtype), weights)
    return Message(mean, weighted_mean(report, counts))


def _where(counts: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, old)
