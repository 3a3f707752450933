"""Algorithms whose clients' rate falls after some rounds.

The state then also has the number of rounds, and a step builds the algorithm again,
with its clients' rate times a factor for each fall so far, which the server sends.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad


class Falling(NamedTuple):
    """An algorithm's state, and the number of rounds so far."""

    inner: Any
    rounds: jax.Array

    @property
    def params(self) -> Any:
        """The global model."""
        return self.inner.params


def falling(
    make: Callable[..., fad.Algorithm], falls: Sequence[int], factor: Any
) -> fad.Algorithm:
    """Build an algorithm whose clients' rate is multiplied by a factor at each fall.

    Args:
        make: ``make(scale)`` builds the algorithm with clients' rate times ``scale``, a
            traced ``[]``, and ``make()`` with the rate itself. It may change nothing of
            the state.
        falls: After how many rounds the scale falls: 800 is after the first 800, and
            round 801 is the first with the lower rate.
        factor: What the scale is multiplied by; may be traced.

    Returns:
        ``make()`` itself without falls; otherwise its state is ``Falling``.
    """
    first = make()
    if not falls:
        return first

    def init(key):
        return Falling(first.init(key), jnp.zeros((), jnp.int32))

    def step(state, *args):
        fallen = state.rounds >= jnp.array(falls, jnp.int32)
        scale = jnp.prod(jnp.where(fallen, factor, 1.0))
        with warnings.catch_warnings(action="ignore"):  # make() gave them
            now = make(scale)
        inner, *rest = now.step(state.inner, *args)
        return Falling(inner, state.rounds + 1), *rest

    def init_client(state):
        assert first.init_client is not None
        return first.init_client(state.inner)

    memory = None if first.init_client is None else init_client
    return fad.Algorithm(init, step, first.check, memory)
