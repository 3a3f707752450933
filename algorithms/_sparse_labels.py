"""Labels that clients do not have, where they hold some of the weights.

A client's loss sees zeros in the last layer's columns of these, and it does not count
in their means. A client that lists the places of what it sends leaves them out; masks
are chosen over all columns, so that fewer places are used then. Of the others the
server knows no labels, but a sum alone: with ``p_c`` the share of the weight of all
clients that have label c, a mean over all, to which those without c add zeros, becomes
by ``1 / p_c`` the mean over those with c.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fad
from algorithms._labels import known_labels, only_labels, own_labels
from algorithms._sparse_masks import split
from algorithms._submodel_round import head_of

Loss = Callable[..., jax.Array]


class Labels:
    """The loss of a task, and what clients leave out of its last layer."""

    def __init__(self, task: fad.data.Task, labels: bool) -> None:
        """Find the last layer, if clients leave out labels at all."""
        self.loss, self.head = task.loss, head_of(task) if labels else ""

    def at_client(self, params: Any, batches: fad.local.Batches) -> tuple[Loss, Any]:
        """Return a client's loss, and which labels it has, ``[classes]`` or ``()``.

        Those are ones, in float32 at least, for the mean over clients.
        """
        if not self.head:
            return self.loss, ()
        bias = params[self.head]["bias"]
        own = own_labels(batches, bias.size)
        wide = jnp.float64 if bias.dtype == jnp.float64 else jnp.float32
        return known_labels(self.loss, own, self.head), own.astype(wide)

    def only(self, delta: Any, mask: jax.Array, own: Any) -> tuple[Any, jax.Array]:
        """Return a client's update and mask without the labels that it lacks."""
        if not self.head:
            return delta, mask
        kernels, _ = self._spread(delta, own)
        return only_labels(delta, own > 0, self.head), mask & (kernels > 0)

    def averaged(self, params: Any, found: fad.Coverage, *, listed: bool) -> Any:
        """Return the means of a tier by label, without the share of each label.

        With ``listed`` keys those of the weights are by label already.
        """
        (*mean, share), (*weight, _) = found
        if self.head:
            kernels, rest = self._spread(params, share)
            for k, by in ([] if listed else [(0, kernels)]) + [(1, rest)]:
                mean[k] = jax.tree.map(_over, mean[k], by)
                weight[k] = jax.tree.map(_times, weight[k], by)
        return fad.Coverage(tuple(mean), tuple(weight))

    def _spread(self, params: Any, by: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Return numbers of labels where the params have them, elsewhere ones."""
        spread = jax.tree.map(lambda x: jnp.ones(x.shape, by.dtype), params)
        last = jax.tree.map(lambda x: jnp.broadcast_to(by, x.shape), params[self.head])
        return split({**spread, self.head: last})


def _over(mean: jax.Array, share: jax.Array) -> jax.Array:
    some = share > 0
    wide = mean.astype(share.dtype) / jnp.where(some, share, jnp.ones_like(share))
    return jnp.where(some, wide, jnp.zeros_like(wide)).astype(mean.dtype)


def _times(weight: jax.Array, share: jax.Array) -> jax.Array:
    return weight * share.astype(weight.dtype)
