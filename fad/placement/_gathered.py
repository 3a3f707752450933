"""Clients' values at the server, one by one, in a way that is counted."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from fad.placement._at_clients import AtClients

GATHERED = "fad_gathered"  # the mark by which fad.plan and fad.check know it


def gathered(x: AtClients[Any]) -> Any:
    """Return ``x.unsafe_gather()``, marked as what each client sends: ``[n, *s]``.

    The mark is on values alone: what a derivative of them moves, ``fad.plan`` does not
    count.

    Args:
        x: A client value.

    Returns:
        The wrapped tree, which the server may compute with.

    Example:
        >>> import jax.numpy as jnp
        >>> gathered(AtClients(jnp.arange(3))).tolist()
        [0, 1, 2]
    """
    return jax.tree.map(lambda v: checkpoint_name(v, GATHERED), x.unsafe_gather())
