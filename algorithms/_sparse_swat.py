"""Local training with sparse weights and dense gradients.

Raihan and Aamodt, "Sparse Weight Activation Training", NeurIPS 2020: of the weights in
each step only the largest of each layer are used, and all of them are moved.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._sparse_masks import only, sizes, split, top


def swat(
    params: Any,
    batches: fad.local.Batches,
    counts: Sequence[int],
    loss: Callable,
    client: optax.GradientTransformation,
) -> fad.local.LocalResult:
    """Train dense weights by the gradients at the largest ``counts[l]`` of each layer.

    They are the gradients by a ``shift`` of the sparse weights, which stays zero.
    """
    layers = sizes(params)

    def shifted(both, examples):
        dense = both["dense"]
        sparse = only(dense, top(jnp.abs(split(dense)[0]), layers, counts))
        return loss(jax.tree.map(jnp.add, sparse, both["shift"]), examples)

    def update(updates, state, params: Any = None):
        step, state = client.update(updates["shift"], state, params["dense"])
        return {"dense": step, "shift": zeros}, state

    def init(params):
        return client.init(params["dense"])

    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = optax.GradientTransformation(init, update)
    both = {"dense": params, "shift": zeros}
    local = fad.local.train(both, batches, loss=shifted, optimizer=optimizer)
    return local._replace(params=local.params["dense"], delta=local.delta["dense"])
