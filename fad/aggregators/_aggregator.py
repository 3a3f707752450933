"""What an aggregator is: the client's side, the sum, the server's side, its state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fad.primitives import weighted_mean

PyTree = Any


def _send_update(theta: Any, state: Any, update: PyTree, key: Any) -> PyTree:
    del theta, state, key
    return update


class Aggregator(NamedTuple):
    """An aggregator as a record of pure functions.

    In a round, with the clients' updates ``d_i``, parameters after minus before::

        m_i  = client(theta, state, d_i, key_i)            at each client
        mean = combine(AtClients(m_i), AtClients(w_i))     sums alone reach the server
        step, state = server(theta, state, mean, params, key)
        params = params + step

    ``theta`` is what is learned: data, so that programs are differentiated by it. What
    ``client`` uses of ``theta`` and ``state`` is broadcast to the clients, and nothing
    else is. Randomness comes from the keys; a deterministic part ignores its own.

    Attributes:
        init_theta: ``(key) -> theta``, where learning starts; ``()`` if nothing is.
        init: ``(params) -> state``, at the server.
        server: ``(theta, state, mean, params, key) -> (step, state)``; ``step`` is
            like ``params``.
        client: ``(theta, state, update, key) -> message``; the update itself without.
        combine: ``(messages, weights) -> mean``, a piece of a fad program; the
            weighted mean by two sums without.

    Example:
        >>> import fad
        >>> half = Aggregator(
        ...     init_theta=lambda key: jnp.array(0.5),
        ...     init=lambda params: (),
        ...     server=lambda theta, state, mean, params, key: (theta * mean, state),
        ... )
        >>> @fad.program
        ... def step(theta, updates, weights):
        ...     mean = half.combine(updates, weights)
        ...     return half.server(theta, (), mean, None, None)[0]
        >>> updates = fad.AtClients(jnp.array([1.0, 3.0]))
        >>> weights = fad.AtClients(jnp.ones(2))
        >>> float(jax.grad(step)(half.init_theta(None), updates, weights))
        2.0
    """

    init_theta: Callable[[Any], Any]
    init: Callable[[PyTree], Any]
    server: Callable[[Any, Any, Any, PyTree, Any], tuple[PyTree, Any]]
    client: Callable[[Any, Any, PyTree, Any], Any] = _send_update
    combine: Callable[[Any, Any], Any] = weighted_mean


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
