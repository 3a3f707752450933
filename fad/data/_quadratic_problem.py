"""The federated quadratics as a bilevel problem of ``fad.estimators``."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.data._quadratics import Quadratics
from fad.estimators import Bilevel, Split
from fad.local import Batches
from fad.placement import AtClients


def quadratic_problem(
    data: Quadratics, *, steps: int = 1
) -> tuple[Bilevel, AtClients[Split]]:
    """Return the bilevel problem of quadratic clients, and all of them as one cohort.

    A client's one example is its matrices, so its losses are exact. It has the example
    ``steps`` times, in a batch each: a client's pass is so many local steps.

    Args:
        data: The clients.
        steps: Local steps of a pass, at least 1.

    Returns:
        The problem, whose clients count the same, and cohorts ``[1, n, *]``.

    Example:
        >>> data = Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = quadratic_problem(data, steps=5)
        >>> cohorts.lower.mask
        AtClients(bool[1,4,5,1])
    """
    clients = data.at_clients().unsafe_gather()
    n = data.num_clients

    def batches(count: int) -> Batches:
        def repeated(a: jax.Array) -> jax.Array:
            shape = (1, n, count, 1, *a.shape[1:])
            return jnp.broadcast_to(a[None, :, None, None], shape)

        mask = jnp.ones((1, n, count, 1), bool)
        return Batches(jax.tree.map(repeated, clients), mask, jnp.arange(n)[None])

    problem = Bilevel(upper=_rows("upper"), lower=_rows("lower"))
    return problem, AtClients(Split(lower=batches(steps), upper=batches(1)))


def _rows(name: str) -> Any:
    def loss(x: Any, y: Any, examples: Any) -> jax.Array:
        return jax.vmap(lambda client: getattr(client, name)(x, y))(examples)

    return loss
