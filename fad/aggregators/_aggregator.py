"""What an aggregator is: the client's side, the sum, the server's side, its state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fad.placement import AtClients
from fad.primitives import map, sum, weigh, weighted_mean

PyTree = Any


class Message(NamedTuple):
    """What a client sends besides its update: the update, and something to report.

    Attributes:
        value: What is averaged with the clients' weights.
        report: Numbers that are averaged over the clients that count, all the same;
            the server's side gets ``Message(mean, mean_report)``.
    """

    value: Any
    report: Any


def mean_by_sums(
    messages: AtClients[PyTree], weights: AtClients[jax.Array], total: Callable
) -> PyTree:
    """Return ``total(w m) / fad.sum(w)``, and zero where the weights sum to zero.

    ``[n, *s], [n] -> [*s]``; with ``fad.sum`` it is ``fad.weighted_mean``.

    Args:
        messages: What the clients send.
        weights: One weight per client.
        total: How a client value is summed, ``fad.sum`` or the like.

    Returns:
        The weighted mean.

    Raises:
        PlacementError: If an argument is no client value.

    Example:
        >>> import fad
        >>> x, w = fad.AtClients(jnp.array([1.0, 4.0])), fad.AtClients(jnp.ones(2))
        >>> float(fad.program(mean_by_sums)(x, w, fad.sum))
        2.5
    """
    if total is sum:
        return weighted_mean(messages, weights)
    weighted, weight = map(weigh, messages, weights)
    weight = sum(weight)
    safe = jnp.where(weight == 0, jnp.ones_like(weight), weight)
    return jax.tree.map(
        lambda s, m: (s / safe.astype(s.dtype)).astype(_float_of(m.dtype)),
        total(weighted),
        messages.unsafe_gather(),
    )


def _float_of(dtype: Any) -> Any:
    floats = jnp.issubdtype(dtype, jnp.inexact)
    return dtype if floats else jnp.result_type(float)


def _nothing(*args: Any) -> tuple[()]:
    del args
    return ()


def _send_update(theta: Any, state: Any, memory: Any, update: PyTree, key: Any) -> Any:
    del theta, state, key
    return update, memory


def _take_mean(theta: Any, state: Any, mean: Any, params: Any, key: Any) -> Any:
    del theta, params, key
    return mean, state


def _no_metrics(state: Any) -> dict[str, jax.Array]:
    del state
    return {}


class Aggregator(NamedTuple):
    """An aggregator as a record of pure functions.

    In a round, with the clients' updates ``d_i``, parameters after minus before::

        m_i, memory_i = client(theta, state, memory_i, d_i, key_i)     at each client
        mean = combine(AtClients(m_i), AtClients(w_i), total)          sums alone
        step, state = server(theta, state, mean, params, key)
        params = params + step

    ``fad.aggregators.aggregate`` does this, ``fad.aggregators.chain`` joins several.
    ``theta`` is what is learned: data, so that programs are differentiated by it. What
    ``client`` uses of ``theta`` and ``state`` is broadcast to the clients, and nothing
    else is. Randomness comes from the keys; a deterministic part ignores its own. Every
    part has a default, with which the aggregator is the weighted mean.

    Attributes:
        init_theta: ``(key) -> theta``, where learning starts; ``()`` if nothing is.
        init: ``(params) -> state``, at the server.
        server: ``(theta, state, mean, params, key) -> (step, state)``; ``step`` is
            like ``params``.
        client: ``(theta, state, memory, update, key) -> (message, memory)``; a message
            may be a ``Message``.
        combine: ``(messages, weights, total) -> mean``, a piece of a fad program. A
            client of weight 0 must not count.
        total: ``(AtClients) -> sum``, how ``combine`` is to sum: ``fad.sum``, with a
            code on the wire, or in the arithmetic of a secure sum.
        init_client: ``(params) -> memory``, what a client keeps between its rounds.
        metrics: ``(state) -> {name: number}``, to show after a round.
        codes: Whether ``combine`` and ``total`` are only a short form of messages that
            any sum may have: a chain in which something else changes or sums them goes
            without it.

    Example:
        >>> import fad
        >>> half = Aggregator(
        ...     init_theta=lambda key: jnp.array(0.5),
        ...     server=lambda theta, state, mean, params, key: (theta * mean, state),
        ... )
        >>> @fad.program
        ... def step(theta, updates, weights):
        ...     mean = half.combine(updates, weights, half.total)
        ...     return half.server(theta, (), mean, None, None)[0]
        >>> updates = fad.AtClients(jnp.array([1.0, 3.0]))
        >>> weights = fad.AtClients(jnp.ones(2))
        >>> float(jax.grad(step)(half.init_theta(None), updates, weights))
        2.0
    """

    init_theta: Callable[[Any], Any] = _nothing
    init: Callable[[PyTree], Any] = _nothing
    server: Callable[..., tuple[PyTree, Any]] = _take_mean
    client: Callable[..., tuple[Any, Any]] = _send_update
    combine: Callable[..., Any] = mean_by_sums
    total: Callable[[Any], Any] = sum
    init_client: Callable[[PyTree], Any] = _nothing
    metrics: Callable[[Any], dict[str, jax.Array]] = _no_metrics
    codes: bool = False


def from_optax(optimizer: optax.GradientTransformation) -> Aggregator:
    """Make the aggregator of an optax optimizer, whose log step is learned.

    ``step = exp(theta) * optimizer(-mean)``: with ``optax.sgd(1.0)`` FedAvg, with
    ``optax.adam`` FedAdam. ``theta`` is one number, and starts at 0.

    Args:
        optimizer: Turns the mean update, as a gradient, into a direction.

    Returns:
        The aggregator.

    Example:
        >>> fedavg = from_optax(optax.sgd(1.0))
        >>> state, mean = fedavg.init(jnp.zeros(2)), jnp.array([1.0, -2.0])
        >>> fedavg.server(jnp.zeros(()), state, mean, jnp.zeros(2), None)[0].tolist()
        [1.0, -2.0]

    Source: S. Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2.
    """

    def server(theta, state, mean, params, key):
        del key
        gradient = jax.tree.map(jnp.negative, mean)
        direction, state = optimizer.update(gradient, state, params)
        scale = jnp.exp(theta)
        return jax.tree.map(lambda d: scale.astype(d.dtype) * d, direction), state

    return Aggregator(
        init_theta=lambda key: jnp.zeros((), jnp.result_type(float)),
        init=optimizer.init,
        server=server,
    )
