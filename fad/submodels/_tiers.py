"""The tiers of a cohort: runs of clients that have the same width."""

from typing import Any

import jax

from fad._errors import FadError, describe
from fad.placement import AtClients


def tiers(cohort: AtClients, count: int) -> tuple[AtClients, ...]:
    """Cut a cohort into ``count`` equal runs, each ``[n, *s] -> [n / count, *s]``.

    Tier ``t`` holds the places ``t n / count`` to ``(t + 1) n / count``. All of its
    clients get one width, so that their slices of the model have one static shape.

    Args:
        cohort: A client value, such as a cohort or the clients' keys.
        count: The number of tiers.

    Returns:
        The tiers, client values of the cohort's structure.

    Raises:
        FadError: ``cohort`` is no client value, ``count`` no positive int, or the
            number of clients no multiple of it.

    Example:
        >>> import jax.numpy as jnp
        >>> wide, narrow = tiers(AtClients(jnp.arange(4)), 2)
        >>> narrow.unsafe_gather().tolist()
        [2, 3]
    """
    if not isinstance(cohort, AtClients):
        raise FadError(
            f"fad.submodels.tiers(cohort=...): expected an AtClients; got "
            f"{describe(cohort)}. Wrap what lives at the clients in fad.AtClients."
        )
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise FadError(
            f"fad.submodels.tiers(count=...): expected a positive int; got "
            f"{describe(count)}."
        )
    clients = cohort.num_clients
    if clients % count:
        raise FadError(
            f"fad.submodels.tiers(count={count}): the cohort has {clients} clients, "
            f"which make no {count} equal tiers. Draw a multiple of {count} clients."
        )
    size = clients // count

    def tier(start: int) -> AtClients:
        def part(x: Any) -> Any:
            return x[start : start + size]

        return jax.tree.map(part, cohort)

    return tuple(tier(start) for start in range(0, clients, size))
