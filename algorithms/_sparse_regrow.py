"""Clients with masks: their local steps, and RigL's prune-and-grow.

Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section 3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._sparse_masks import in_layers, only, sizes, split, top


def train_masked(
    params: Any,
    mask: jax.Array,
    batches: fad.local.Batches,
    *,
    loss: Callable[..., jax.Array],
    client: optax.GradientTransformation,
) -> fad.local.LocalResult:
    """Train the weights of a mask and the rest; the others' gradients are zero."""
    masked = optax.stateless(lambda gradient, _: only(gradient, mask))
    optimizer = optax.chain(masked, client)
    return fad.local.train(params, batches, loss=loss, optimizer=optimizer)


def pruned(params: Any, counts: Any) -> tuple[Any, jax.Array]:
    """Return the params with each layer's largest ``counts[l]``, and their mask."""
    mask = top(jnp.abs(split(params)[0]), sizes(params), counts)
    return only(params, mask), mask


def regrown(
    params: Any, mask: jax.Array, batches: fad.local.Batches, loss: Any, share: Any
) -> tuple[Any, jax.Array]:
    """Return a client's params and mask after prune-and-grow by its first batch.

    They stay the same for share 0.
    """
    rows, real = jax.tree.map(lambda x: x[:1], (batches.examples, batches.mask))
    batch = batches._replace(examples=rows, mask=real)

    def readjust():
        derive = jax.grad(fad.local.evaluate, has_aux=True)
        slope, _ = derive(params, batch, loss=loss)
        vector, gradient = split(params)[0], split(slope)[0]
        return readjusted(vector, gradient, mask, sizes(params), share)

    new = jax.lax.cond(share > 0, readjust, lambda: mask)
    return only(params, new & mask), new


def readjusted(
    vector: jax.Array,
    gradient: jax.Array,
    mask: jax.Array,
    sizes: Sequence[int],
    share: jax.Array,
) -> jax.Array:
    """Return a client's mask after RigL's prune-and-grow, with as many of each layer.

    Of each layer's weights ``floor(share k)`` are dropped, the smallest, and of those
    out of the mask then as many taken whose gradients are largest.
    """
    held = in_layers(mask, sizes)
    dropped = jnp.floor(share * held.astype(jnp.float32)).astype(jnp.int32)
    out = -jnp.ones_like(vector)
    stay = top(jnp.where(mask, jnp.abs(vector), out), sizes, held - dropped)
    grown = top(jnp.where(stay, out, jnp.abs(gradient)), sizes, dropped)
    return stay | grown
