"""QSGD: each coordinate as one of a few levels of its bucket's norm."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.aggregators._aggregator import Aggregator
from fad.aggregators._checks import check_count
from fad.aggregators._norm import norm, wide
from fad.aggregators._vector import at_least_single, straight_through
from fad.placement import AtClients
from fad.primitives import sum

PyTree = Any
Code = tuple[jax.Array, jax.Array]


def qsgd(levels: int, *, bucket: int | None = None) -> Aggregator:
    """Make the aggregator that rounds updates at random to a few levels.

    Each tensor by itself, in buckets of so many coordinates. With ``|v|`` the norm of a
    bucket and s the levels, a coordinate becomes::

        Q(v_j) = |v| sign(v_j) l / s,    l = floor(s |v_j| / |v| + u),   u ~ U[0, 1)

    from the client's key. So it is unbiased, and ``E |Q(v) - v|^2`` is at most
    ``min(b / s^2, sqrt(b) / s) |v|^2`` for a bucket of b coordinates (in 16 bits, but
    for the rounding to the update's dtype).

    On the wire are ``ceil(log2(2 s + 1))`` bits per coordinate, packed into bytes, and
    one float32 per bucket. The server has to decode each client's code, so
    ``fad.check`` refuses it unless told ``allow="decode"``. The derivative is straight
    through, as if nothing were rounded. A chain in which something comes after it that
    changes messages, or that sums in another way, goes without the code.

    Args:
        levels: s, from 1 (the signs alone) to 127.
        bucket: Coordinates per norm; by default those of the tensor.

    Returns:
        The aggregator.

    Raises:
        ConfigError: ``levels`` or ``bucket`` is no such int.

    Example:
        >>> update = jnp.array([3.0, -4.0, 0.0, 0.0])
        >>> message, _ = qsgd(5).client((), (), (), update, jax.random.key(0))
        >>> message.tolist()  # of norm 5: levels 3, -4, 0 and 0 of 5
        [3.0, -4.0, 0.0, 0.0]

    References:
        D. Alistarh et al., QSGD: Communication-efficient SGD via gradient quantization
        and encoding, NeurIPS 2017, equation 4 and lemma 3.1, in buckets; with a fixed
        length per coordinate in the place of Elias codes.
    """
    call = "fad.aggregators.qsgd"
    check_count(f"{call}(levels)", "levels", levels, most=127)
    if bucket is not None:
        check_count(f"{call}(bucket=...)", "bucket", bucket)

    def client(theta, state, memory, update, key):
        del theta, state
        leaves, treedef = jax.tree.flatten(update)
        keys = jax.random.split(key, len(leaves))
        out = []
        for x, k in zip(leaves, keys, strict=True):
            rounded = _value(*_quantise(x, k, levels, bucket), levels, bucket, x)
            out.append(straight_through(rounded, x))
        return treedef.unflatten(out), memory

    def total(messages: AtClients[PyTree]) -> PyTree:
        def types(x):
            one = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
            key = jax.eval_shape(lambda: jax.random.key(0))
            return jax.eval_shape(lambda v, k: encode(v, k, levels, bucket), one, key)

        return sum(messages, wire=jax.tree.map(types, messages.unsafe_gather()))

    return Aggregator(client=client, total=total, codes=True)


def encode(x: jax.Array, key: jax.Array, levels: int, bucket: int | None) -> Code:
    """Return the packed levels and the buckets' norms: ``uint8[bytes], float32[b]``."""
    signed, norms = _quantise(x, key, levels, bucket)
    places = jnp.arange(_bits(levels), dtype=jnp.uint8)[None]
    code = (signed + levels).astype(jnp.uint8)[:, None]
    return jnp.packbits(code >> places & 1), norms


def decode(code: Code, levels: int, bucket: int | None, like: Any) -> jax.Array:
    """Return the values, with the shape and dtype of ``like``."""
    packed, norms = code
    bits = _bits(levels)
    each = jnp.unpackbits(packed)[: like.size * bits].reshape(like.size, bits)
    powers = 2 ** jnp.arange(bits, dtype=jnp.int32)[None]
    signed = (each.astype(jnp.int32) * powers).sum(1, dtype=jnp.int32) - levels
    return _value(signed, norms, levels, bucket, like)


def _bits(levels: int) -> int:
    return (2 * levels).bit_length()  # of the numbers 0 to 2 s


def _quantise(
    x: jax.Array, key: jax.Array, levels: int, bucket: int | None
) -> tuple[jax.Array, jax.Array]:
    """Return the levels from -s to s and the norms: ``int32[d], float32[b]``."""
    rows = _rows(at_least_single(x).reshape(-1), bucket)
    norms = jax.vmap(lambda row: norm(row).value)(rows).astype(jnp.float32)
    safe = jnp.where(norms == 0, 1, norms).astype(rows.dtype)[:, None]
    scaled = jnp.abs(rows) / safe * levels
    low = jnp.floor(scaled)
    up = jax.random.uniform(key, rows.shape, rows.dtype) < scaled - low
    signed = jnp.sign(rows) * jnp.minimum(low + up.astype(rows.dtype), levels)
    return signed.astype(jnp.int32).reshape(-1)[: x.size], norms


def _value(
    signed: jax.Array, norms: jax.Array, levels: int, bucket: int | None, like: Any
) -> jax.Array:
    """Return what levels and norms stand for, with the shape and dtype of ``like``."""
    dtype = wide(like)
    rows = _rows(signed, bucket).astype(dtype) / levels * norms[:, None].astype(dtype)
    return rows.reshape(-1)[: like.size].reshape(like.shape).astype(like.dtype)


def _rows(vector: jax.Array, bucket: int | None) -> jax.Array:
    """Return one bucket per row, the last filled with zeros."""
    width = max(1, min(bucket or vector.size, vector.size))
    return jnp.pad(vector, (0, -vector.size % width)).reshape(-1, width)
