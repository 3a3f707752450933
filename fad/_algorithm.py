"""What an algorithm is: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Algorithm(NamedTuple):
    """A federated algorithm as a record of two pure functions.

    ``init(key) -> state`` makes the first state. ``step(state, cohort, key) -> (state,
    metrics)`` is one communication round (or a few) with the clients in ``cohort``, an
    ``AtClients`` value; it is a fad program, so whoever calls it may jit it and
    differentiate it. ``state`` is a pytree of arrays with the global model as
    ``state.params``; ``metrics`` is a flat dict of scalar arrays.

    ``check(metrics)``, if there is one, gets each round's metrics as numbers, before
    anything of the round is kept, and raises a ``FadError`` where the run must end.

    ``init_client(state) -> memory``, if there is one, makes from the first state what a
    client keeps from one of its rounds to the next, before its first. The step is then
    ``step(state, cohort, key, memory) -> (state, metrics, memory)`` with the memories
    of the cohort's clients, an ``AtClients`` value. Whoever runs the rounds keeps those
    of all clients (``fad.data.ClientMemories``). A client without examples gets its
    memory back as it was, and nothing of an update that is left out is kept.

    Example:
        >>> import collections, jax.numpy as jnp, fad
        >>> State = collections.namedtuple("State", "params")
        >>> @fad.program
        ... def step(state, cohort, key):
        ...     average = fad.mean(cohort)
        ...     return State(average), {"distance": abs(average - state.params)}
        >>> consensus = fad.Algorithm(lambda key: State(jnp.zeros(())), step)
        >>> state, _ = consensus.step(
        ...     consensus.init(None), fad.AtClients(jnp.array([1.0, 3.0])), None
        ... )
        >>> state.params
        Array(2., dtype=float32)
    """

    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[Any, ...]]
    check: Callable[[dict[str, float]], None] | None = None
    init_client: Callable[[Any], Any] | None = None
