"""Aggregators one after the other."""

from typing import Any

import jax

from fad._errors import FadError
from fad.aggregators._aggregator import Aggregator, Message, mean_by_sums
from fad.primitives import sum

_CALL = "fad.aggregators.chain(*aggregators)"
_SERVER = 2**32 - 1  # no client has this number


def chain(*aggregators: Aggregator) -> Aggregator:
    """Join aggregators: the first is nearest to the model, the last to the wire.

    At a client an update passes through the client sides from the first to the last;
    at the server the mean comes back through the server sides from the last to the
    first. So ``chain(clip, quantise, secure_sum, noise)`` clips, then quantises, then
    sums securely, and adds noise to what comes out. One of them may say how messages
    are combined, and one how they are summed.

    Args:
        *aggregators: At least one.

    Returns:
        The aggregator; its theta, state and memory are tuples of theirs.

    Raises:
        FadError: There is none, two say how to combine or how to sum, or one is no
            aggregator.

    Example:
        >>> import fad, jax.numpy as jnp
        >>> double = Aggregator(client=lambda t, s, m, d, key: (2 * d, m))
        >>> one_less = Aggregator(client=lambda t, s, m, d, key: (d - 1, m))
        >>> both = chain(double, one_less)
        >>> memory = both.init_client(jnp.zeros(()))
        >>> message, _ = both.client(((), ()), ((), ()), memory, jnp.array(3.0), None)
        >>> float(message.value)
        5.0
    """
    for i, one in enumerate(aggregators):
        if not isinstance(one, Aggregator):
            raise FadError(
                f"{_CALL}: aggregators[{i}] is a {type(one).__name__}; expected a "
                "fad.aggregators.Aggregator. Call the function that makes it."
            )
    if not aggregators:
        raise FadError(f"{_CALL}: expected at least one aggregator, got none.")

    def metrics(state):
        found = [a.metrics(s) for a, s in zip(aggregators, state, strict=True)]
        return {name: x for one in found for name, x in one.items()}

    def init_theta(key):
        keys = [None] * len(aggregators)
        if key is not None:
            keys = list(jax.random.split(key, len(aggregators)))
        return tuple(a.init_theta(k) for a, k in zip(aggregators, keys, strict=True))

    return Aggregator(
        init_theta=init_theta,
        init=lambda params: tuple(a.init(params) for a in aggregators),
        init_client=lambda params: tuple(a.init_client(params) for a in aggregators),
        client=_client_of(aggregators),
        server=_server_of(aggregators),
        metrics=metrics,
        combine=_only(aggregators, "combine", mean_by_sums),
        total=_only(aggregators, "total", sum),
    )


def _client_of(aggregators: tuple[Aggregator, ...]) -> Any:
    """Return the client sides, one after the other."""

    def client(theta, state, memory, update, key):
        value, reports, memories = update, [], []
        for i, one in enumerate(aggregators):
            own = None if key is None else jax.random.fold_in(key, i)
            message, kept = one.client(theta[i], state[i], memory[i], value, own)
            value, report = message if isinstance(message, Message) else (message, ())
            reports.append(report)
            memories.append(kept)
        return Message(value, tuple(reports)), tuple(memories)

    return client


def _server_of(aggregators: tuple[Aggregator, ...]) -> Any:
    """Return the server sides, from the last to the first."""

    def server(theta, state, mean, params, key):
        value, reports = mean
        states = list(state)
        for i in reversed(range(len(aggregators))):
            own = None if key is None else server_key(key, i)
            told = bool(jax.tree.leaves(reports[i]))
            mean = Message(value, reports[i]) if told else value
            value, states[i] = aggregators[i].server(
                theta[i], state[i], mean, params, own
            )
        return value, tuple(states)

    return server


def server_key(key: jax.Array, i: int) -> jax.Array:
    """Return a key that is no client's: theirs have their numbers folded in."""
    return jax.random.fold_in(jax.random.fold_in(key, _SERVER), i)


def _only(aggregators: tuple[Aggregator, ...], name: str, usual: Any) -> Any:
    """Return the one part of this name that is not the usual one."""
    own = [i for i, a in enumerate(aggregators) if getattr(a, name) is not usual]
    if len(own) > 1:
        raise FadError(
            f"{_CALL}: aggregators {own} each have a {name} of their own; expected at "
            "most one. Leave all but one of them out."
        )
    return getattr(aggregators[own[0]], name) if own else usual
