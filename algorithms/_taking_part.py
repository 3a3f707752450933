"""Which clients count in a round: those with examples, and a finite update."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

import fad

# Of an update that is not finite: let it end the run, or leave the client out. Values
# are then as if it were not there; a derivative in reverse mode is NaN, as the client's
# own is, and zero times that.
Nonfinite = Literal["refuse", "exclude"]


def takes_part(
    update: Any, num_examples: jax.Array, nonfinite: Nonfinite
) -> tuple[jax.Array, jax.Array]:
    """Return whether one client counts, and whether it is left out, as bools ``[]``.

    A client without examples does not count, and is not left out. With ``refuse`` an
    update that is not finite counts: the model becomes NaN, and the run refuses the
    round.
    """
    there = num_examples > 0
    if nonfinite == "refuse":
        return there, jnp.zeros((), bool)
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(update)]).all()
    return there & finite, there & ~finite


def where(counts: jax.Array, new: Any, old: Any) -> Any:
    """Return ``new`` if a client counts, ``old`` (a tree or one number) otherwise."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        old = jax.tree.map(lambda x: jnp.full_like(x, old), new)
    return jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, old)


def cohort_metrics(
    losses: fad.AtClients, weights: fad.AtClients, excluded: fad.AtClients
) -> dict[str, jax.Array]:
    """Return ``train_loss`` and ``excluded_clients``, by one more sum of a scalar.

    Args:
        losses: ``[n]``, each client's mean loss.
        weights: ``[n]``, 0 where a client does not count.
        excluded: ``[n]`` bools, the clients left out.
    """
    left_out = fad.sum(fad.map(lambda e: e.astype(jnp.float32), excluded))
    train_loss = cohort_loss(losses, weights, left_out)
    return {"train_loss": train_loss, "excluded_clients": left_out}


def cohort_loss(
    losses: fad.AtClients, weights: fad.AtClients, left_out: jax.Array
) -> jax.Array:
    """Return the mean loss; NaN, which ends a run, where all clients are left out."""
    nobody = (left_out > 0) & (fad.sum(weights) == 0)
    return jnp.where(nobody, jnp.nan, fad.weighted_mean(losses, weights))
