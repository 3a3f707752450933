"""For algorithms that take all clients in every round."""

import jax
import jax.numpy as jnp

import fad


def absent(name: str, cohort: fad.AtClients, num_clients: int) -> jax.Array:
    """Return how many places of a cohort of all clients are empty, to be checked.

    Raises:
        FadError: The cohort has another size.
    """
    if (came := cohort.num_clients) != num_clients:
        raise fad.FadError(
            f"algorithms.{name}: all {num_clients} clients must take part, and the "
            f"cohort has {came}. Set cohort = {num_clients}."
        )
    return fad.sum(fad.map(lambda b: (b.client < 0).astype(jnp.float32), cohort))


def check(metrics: dict[str, float]) -> None:
    """Refuse a round in which some could not be reached.

    Raises:
        FadError: There is an empty place.
    """
    if count := round(metrics["absent_clients"]):
        raise fad.FadError(
            f"all clients must take part, and {count} could not be reached. Leave "
            "availability at 1."
        )
