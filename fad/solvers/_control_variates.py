"""The control variates of SCAFFOLD, which stay at the clients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError, describe
from fad.placement import AtClients
from fad.primitives import map


class ControlVariates(NamedTuple):
    """The memory of ``fad.solvers.scaffold``.

    Attributes:
        server: Like y, the mean of the clients' control variates.
        clients: Like y at each client of the cohort, ``[n, *s]``, slot by slot.
    """

    server: Any
    clients: AtClients[Any]


def zeros(y: Any, cohort: Any) -> ControlVariates:
    """Return the first control variates; clients make their own, nothing is sent."""

    def own(_):
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), y)

    return ControlVariates(own(None), map(own, cohort))


def mean_local_gradient(slope: Any, delta: Any, lr: Any, steps: jax.Array) -> Any:
    """Return ``c_i - c + (y - y_i) / (tau_i lr)`` of ``slope = c - c_i``."""

    def mean(s, d):
        length = jnp.asarray(lr, d.dtype) * jnp.maximum(steps, 1).astype(d.dtype)
        return -s - d / length

    return jax.tree.map(mean, slope, delta)


def renewal(new: Any, old: Any, steps: jax.Array) -> Any:
    """Return the change of a control variate, zero at a client without steps."""
    return jax.tree.map(
        lambda a, b: jnp.where(steps > 0, a - b, jnp.zeros_like(a)), new, old
    )


def check_memory(call: str, memory: Any) -> None:
    """Refuse what is no memory of ``scaffold``."""
    if not isinstance(memory, ControlVariates):
        raise FadError(
            f"{call}: step(loss, y, memory, cohort, key) got memory={describe(memory)};"
            " expected the ControlVariates of init(y, cohort), or of the step before."
        )
