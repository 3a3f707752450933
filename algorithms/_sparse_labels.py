"""Labels that clients do not have, where they hold some of the weights.

The last layer's columns of these are zero in a client's losses, and it does not count
in their means. A client that lists the places of what it sends leaves them out. Of the
others the server knows no labels, but a sum alone: with ``p_c`` the share of the weight
of all clients that have label c, a mean over all, to which those without c add zeros,
becomes by ``1 / p_c`` the mean over those with c.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fad
from algorithms._labels import known_labels, own_labels, scaled_labels
from algorithms._sparse_masks import split
from algorithms._submodel_round import head_of

Loss = Callable[..., jax.Array]


class Labels:
    """The loss of a task, and what clients leave out of its last layer."""

    def __init__(self, task: fad.data.Task, labels: bool) -> None:
        """Find the last layer, if clients leave out labels at all."""
        self.loss, self.head = task.loss, head_of(task) if labels else ""

    def at_client(self, params: Any, batches: fad.local.Batches) -> tuple[Loss, Any]:
        """Return a client's loss, and ones for its labels, ``[classes]`` or ``()``."""
        if not self.head:
            return self.loss, ()
        bias = params[self.head]["bias"]
        own = own_labels(batches, bias.size)
        wide = jnp.promote_types(bias.dtype, jnp.float32)
        return known_labels(self.loss, own, self.head), own.astype(wide)

    def only(self, delta: Any, mask: jax.Array, own: Any) -> tuple[Any, jax.Array]:
        """Return a client's update and mask without the labels that it lacks."""
        if not self.head:
            return delta, mask
        kernels, _ = self._spread(delta, own)
        return scaled_labels(delta, own, self.head), mask & (kernels > 0)

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
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, by.dtype), params)
        return split(scaled_labels(ones, by, self.head))


def _over(mean: jax.Array, share: jax.Array) -> jax.Array:
    some = share > 0
    wide = mean.astype(share.dtype) / jnp.where(some, share, jnp.ones_like(share))
    return jnp.where(some, wide, jnp.zeros_like(wide)).astype(mean.dtype)


def _times(weight: jax.Array, share: jax.Array) -> jax.Array:
    return weight * share.astype(weight.dtype)
