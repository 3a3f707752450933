"""Aggregators one after the other."""

from typing import Any

import jax

from fad._errors import FadError
from fad.aggregators._aggregator import (
    Aggregator,
    Message,
    _send_update,
    mean_by_sums,
)
from fad.primitives import sum

_CALL = "fad.aggregators.chain(*aggregators)"
_SERVER = 2**32 - 1  # no client has this number


def chain(*aggregators: Aggregator) -> Aggregator:
    """Join aggregators: the first is nearest to the model, the last to the wire.

    At a client an update passes through the client sides from the first to the last;
    at the server the mean comes back through the server sides from the last to the
    first. So ``chain(clip(...), rotated_quantisation(...), secure_sum(...),
    gaussian_mean(...))`` clips, then quantises, then sums securely, and adds noise to
    what comes out. One of them may say how messages are combined, and one how they are
    summed. A code (``Aggregator.codes``) stands back behind both, and where a later
    aggregator changes the messages: then they travel as they are, and are counted so.

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

    plain = _without_codes(aggregators)

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
        server=_server_of(aggregators, _owner(plain, "combine", mean_by_sums)),
        metrics=_metrics_of(aggregators),
        combine=_only(plain, "combine", mean_by_sums),
        total=_only(plain, "total", sum),
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


def _server_of(aggregators: tuple[Aggregator, ...], combines: int | None) -> Any:
    """Return the server sides, from the last to the first.

    What ``combine`` reports, if it does, goes to the aggregator whose it is.
    """

    def server(theta, state, mean, params, key):
        (value, reports), states, found = mean, list(state), ()
        if isinstance(value, Message):
            value, found = value
        for i in reversed(range(len(aggregators))):
            own = None if key is None else server_key(key, i)
            report = found if i == combines and found else reports[i]
            told = not (isinstance(report, tuple) and report == ())
            sent = Message(value, report) if told else value
            value, states[i] = aggregators[i].server(
                theta[i], state[i], sent, params, own
            )
        return value, tuple(states)

    return server


def _metrics_of(aggregators: tuple[Aggregator, ...]) -> Any:
    """Return all metrics; the second of a name has a number."""

    def metrics(state):
        shown: dict[str, jax.Array] = {}
        for i, (one, own) in enumerate(zip(aggregators, state, strict=True)):
            for name, x in one.metrics(own).items():
                shown[f"{name}_{i + 1}" if name in shown else name] = x
        return shown

    return metrics


def server_key(key: jax.Array, i: int) -> jax.Array:
    """Return a key that is no client's: theirs have their numbers folded in."""
    return jax.random.fold_in(jax.random.fold_in(key, _SERVER), i)


def _without_codes(aggregators: tuple[Aggregator, ...]) -> tuple[Aggregator, ...]:
    """Drop the codes of messages that something else changes or sums.

    Their values are right either way; the code would be counted for what it is not.
    """
    plain = []
    for i, one in enumerate(aggregators):
        others = aggregators[:i] + aggregators[i + 1 :]
        changed = any(o.client is not _send_update for o in aggregators[i + 1 :])
        means = any(o.combine is not mean_by_sums and not o.codes for o in others)
        sums = any(o.total is not sum and not o.codes for o in others)
        if one.codes and (changed or means):
            one = one._replace(combine=mean_by_sums, total=sum)
        elif one.codes and sums:
            one = one._replace(total=sum)
        plain.append(one)
    return tuple(plain)


def _owner(aggregators: tuple[Aggregator, ...], name: str, usual: Any) -> int | None:
    """Return which aggregator has a part of this name that is not the usual one."""
    own = [i for i, a in enumerate(aggregators) if getattr(a, name) is not usual]
    if len(own) > 1:
        raise FadError(
            f"{_CALL}: aggregators {own} each have a {name} of their own; expected at "
            "most one. Leave all but one of them out."
        )
    return own[0] if own else None


def _only(aggregators: tuple[Aggregator, ...], name: str, usual: Any) -> Any:
    i = _owner(aggregators, name, usual)
    return usual if i is None else getattr(aggregators[i], name)
