"""What the network of a learned aggregator sees of each coordinate, and mixes.

All of it is free of scale: updates and parameters that are all ``c`` times larger give
the same features, and directions ``c`` times larger. So a network that was trained on
some federations meets familiar numbers on others.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_TINY = 1e-20  # below the square of any update that matters, above float32's least
_FLOOR = 0.03  # of a tensor's size, below which a coordinate counts as that large

PyTree = Any


class Sight(NamedTuple):
    """What is known in one round of all coordinates, ``[p]`` each, tensor by tensor.

    Attributes:
        mean: The clients' mean update.
        momenta: Its running means.
        second: The running mean of its square.
        square: The clients' mean squared update, or None.
        sign: The clients' mean sign, or None.
    """

    mean: jax.Array
    momenta: tuple[jax.Array, ...]
    second: jax.Array
    square: jax.Array | None
    sign: jax.Array | None


def look(
    sight: Sight, shared: jax.Array, sizes: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Return the features ``[p, f]``, and the directions ``[p, 5]`` of a step.

    A momentum is seen in its tensor's size and in its coordinate's own; the clients'
    agreement, where it is known, as the mean sign, as signal over noise, and as the
    noise's size; the whole tensor by how well mean and momentum align, and by its
    signal over noise. The directions are the mean update, its momenta, and the middle
    momentum with every coordinate brought to the size of the tensor, as Adam does.

    Args:
        sight: All coordinates.
        shared: ``[s]``, features of the round and of the model.
        sizes: The tensors' numbers of coordinates.
    """
    mean, middle = sight.mean, sight.momenta[1]
    square = mean**2 if sight.square is None else sight.square
    rows = jnp.stack([sight.second, mean * middle, mean**2, middle**2, square])
    second, product, power, strength, noise = _per_tensor(rows, sizes)
    scale = jnp.sqrt(second + _TINY)
    floor = (_FLOOR * scale) ** 2
    own = jnp.sqrt(sight.second + floor)
    seen = [jnp.tanh(x / scale / 2) for x in (mean, *sight.momenta)]
    seen += [jnp.tanh(x / own) for x in sight.momenta]
    seen += [jnp.log(own / scale)]
    if sight.sign is not None:
        seen += [sight.sign, mean / jnp.sqrt(square + floor)]
        seen += [jnp.log((square + floor) / own**2) / 4]
    seen += [product / jnp.sqrt((power + _TINY) * (strength + _TINY))]
    if sight.sign is not None:
        seen += [jnp.log((power + floor) / (noise + floor)) / 2]
    seen += [jnp.broadcast_to(x, mean.shape) for x in shared.astype(mean.dtype)]
    ways = [mean, *sight.momenta, scale * middle / own]
    return jnp.stack(seen, axis=1), jnp.stack(ways, axis=1)


def shared_features(
    rounds: jax.Array, total: int, mean: jax.Array, params: jax.Array
) -> jax.Array:
    """Return the features of the round and of the whole model, ``[4]``."""
    update, model = size(mean), size(params)
    t = rounds.astype(update.dtype)
    part = jnp.minimum(t / total, 1)
    relative = jnp.clip(jnp.log(update / model) / 4 + 1, -1, 2)
    return jnp.stack([part, jnp.log1p(t) / 4, jnp.exp(-t / 5), relative])


def size(x: jax.Array) -> jax.Array:
    """Return the root mean square, with a finite derivative at zero."""
    return jnp.sqrt(jnp.mean(x**2) + _TINY)


def _per_tensor(rows: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Put the mean of its tensor in the place of every number: ``[s, p]``."""
    out, start = [], 0
    for size in sizes:
        part = rows[:, start : start + size]
        mean = jnp.mean(part, axis=1, keepdims=True)
        out.append(jnp.broadcast_to(mean, part.shape))
        start += size
    return jnp.concatenate(out, axis=1)
