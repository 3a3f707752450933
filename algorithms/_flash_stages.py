"""FLASH's state: layers' densities are measured in stage 1, and give the mask."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad
from algorithms import _sparse_masks as masks
from algorithms._server_step import move
from algorithms._sparse_regrow import pruned
from algorithms._sparse_round import Mean
from algorithms._taking_part import where
from fad import submodels


class State(NamedTuple):
    """The server's state: model, seed, mask, layers' mean counts, and the round."""

    params: Any
    seed: jax.Array
    mask: jax.Array
    layers: jax.Array
    rounds: jax.Array


def budgets(sizes: Sequence[int], densities: Sequence[float]) -> list[int]:
    """Return how many weights the clients of each tier keep."""
    found = [submodels.kept(sum(sizes), density) for density in densities]
    if min(found) < len(sizes):
        raise fad.FadError(
            f"flash(densities={tuple(densities)!r}): {min(found)} weights are fewer "
            f"than the {len(sizes)} layers, of which each keeps one at least. Raise "
            "the densities."
        )
    return found


def begin(params: Any, key: jax.Array, total: int) -> State:
    """Return the first state, whose mask has the same share of each layer."""
    sizes = jnp.array(masks.sizes(params))
    _, mask = pruned(params, shared(sizes, total, sizes))
    layers, rounds = jnp.zeros(sizes.size, jnp.float32), jnp.zeros((), jnp.int32)
    return State(params, jax.random.key_data(key), mask, layers, rounds)


def tier_mask(state: State, count: int) -> jax.Array:
    """Return the largest weights of the mask, so many, by the mask's own shares."""
    sizes = masks.sizes(state.params)
    size = jnp.abs(masks.split(state.params)[0])
    size = jnp.where(state.mask, size, -jnp.ones_like(size))
    held = masks.in_layers(state.mask, sizes)
    return masks.top(size, sizes, shared(held, count, held))


def sensed(params: Any, total: int) -> jax.Array:
    """Return how many of the model's largest weights are of each layer, float32."""
    vector, _ = masks.split(params)
    largest = masks.top(jnp.abs(vector), [vector.size], [total])
    return masks.in_layers(largest, masks.sizes(params)).astype(jnp.float32)


def after(
    state: State, mean: Mean, lr: Any, total: int, sensing: int, change: Any
) -> State:
    """Return the state after a round: of stage 1 it has more counts, then the mask.

    Where nobody had examples in stage 1, layers keep the shares of the first mask.
    """
    sizes = masks.sizes(state.params)
    t, held = state.rounds + 1, masks.in_layers(state.mask, sizes)
    first = t <= sensing
    layers = state.layers + jnp.where(first, mean.more / sensing, 0.0)
    params = where(first, state.params, move(state.params, mean.delta, lr))
    found = shared(layers, total, jnp.array(sizes))
    counts = jnp.where(first & (layers.sum() > 0), found, held)
    mask = jnp.where((t == sensing) | change, pruned(params, counts)[1], state.mask)
    params = where(t < sensing, params, masks.only(params, mask))
    return State(params, state.seed, mask, layers, t)


def shared(parts: jax.Array, total: int, most: jax.Array) -> jax.Array:
    """Return integers in proportion to ``parts - 1``, and one more, of this total.

    None is above ``most``: float32 has not all numbers of a large model's weights.
    """
    free = jnp.maximum(parts.astype(jnp.float32) - 1, 0)
    ends = jnp.cumsum(free)
    share = ends / jnp.maximum(ends[-1], 1) * (total - parts.size)
    whole = jnp.floor(share + 0.5).astype(jnp.int32).at[-1].set(total - parts.size)
    whole = jnp.minimum(whole, whole[-1])
    room = most.astype(jnp.int32) - 1
    least = whole[-1] - (room.sum(dtype=jnp.int32) - jnp.cumsum(room, dtype=jnp.int32))
    given, found = jnp.int32(0), []
    for end, more, low in zip(whole, room, least, strict=True):
        upto = jnp.clip(end, jnp.maximum(low, given), given + more)
        found.append(upto - given + 1)
        given = upto
    return jnp.stack(found)
