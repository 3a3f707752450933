"""Random rotation, then uniform quantisation: integers that add up."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad._hadamard import hadamard
from fad.aggregators._aggregator import Aggregator, Message, mean_by_sums
from fad.aggregators._checks import check_count, check_number
from fad.aggregators._vector import (
    Coded,
    at_least_single,
    like,
    ravel,
    straight_through,
    unravel,
)
from fad.placement import AtClients, clients_in_scope
from fad.primitives import map, sum

PyTree = Any

_RARELY = 0.01  # how often an update of the largest norm has a coordinate out of range


class Rotation(NamedTuple):
    """The server's state: the number of the round, and what was out of range."""

    round: jax.Array
    saturated: jax.Array


def rotated_quantisation(bits: int, *, bound: Any, seed: int = 0) -> Aggregator:
    """Make the aggregator that rotates updates at random and rounds them to a grid.

    The whole tree as one vector, filled with zeros to a power of two ``D``::

        z = H diag(signs) v / sqrt(D)            H Hadamard's matrix of +1 and -1
        z to the grid of 2^bits levels on [-r, r], at random to one of the two nearest,
        up with the probability that makes it unbiased
        r = bound min(1, sqrt(2 ln(2 D / 0.01) / D))

    The signs follow from the seed and the number of the round, one int that the clients
    get, so the rotation is the same at all of them; the rounding from a client's key.
    After the rotation no coordinate of an update of norm ``bound`` is large: with
    probability 0.99 all of them are within r. What is not is cut off, which is
    no longer unbiased: metrics has the share of such coordinates,
    ``saturated_fraction``. Clip to ``bound`` before.

    The grid is the same at all clients, so their levels are integers that add up: a
    plain sum, which ``fad.check`` passes. Every client that is there counts the same,
    whatever its weight. One byte per coordinate travels up to 8 bits and two up to 16:
    packed to fewer they would not add up. The derivative is straight through, as if
    nothing were rounded or cut off.

    A code: in a chain with another total (a secure sum) that one sums the values on the
    grid, with another combine (noise) or with a later change of the messages they are
    averaged as the others say.

    Args:
        bits: From 1 to 16.
        bound: The largest norm of an update, a number or ``[]``.
        seed: Of the rotations.

    Returns:
        The aggregator.

    Raises:
        ConfigError: ``bits`` is no such int; FadError in a round with more clients than
            32 bits can sum.

    Example:
        >>> eight = rotated_quantisation(8, bound=2.0)
        >>> update = jnp.array([1.0, -1.0, 1.0])
        >>> state = eight.init(update)
        >>> message, _ = eight.client((), state, (), update, jax.random.key(0))
        >>> step, state = eight.server((), state, message, update, None)
        >>> bool(jnp.abs(step - update).max() < 0.05)
        True

    References:
        A. T. Suresh et al., Distributed mean estimation with limited communication,
        ICML 2017, section 2.2 (uniform levels) and 3 (rotation); with one range for all
        clients in the place of a client's own.
    """
    call = f"fad.aggregators.rotated_quantisation(bits={bits!r})"
    check_count(call, "bits", bits, most=16)
    check_number(call, "bound", bound)
    levels = 2**bits - 1

    def client(theta, state, memory, update, key):
        del theta
        vector = _filled(ravel(update))
        z = hadamard(_signs(seed, state.round, vector) * vector)
        grid, saturated = _quantise(z, _reach(bound, z), levels, key)
        code = Coded(straight_through(grid, z), like(update))
        return Message(code, saturated), memory

    def combine(messages: AtClients[Any], weights: AtClients[Any], total: Any) -> Any:
        there = map(lambda w: (w > 0).astype(w.dtype), weights)
        if total is not sum:
            return mean_by_sums(messages, there, total)
        _check_sum(call, messages.num_clients, levels)
        return _mean_of_levels(messages, there, bound, bits)

    def server(theta, state, mean, params, key):
        del theta, params, key
        (z, shape), saturated = (mean.value.code, mean.value.like), mean.report
        vector = _signs(seed, state.round, z) * hadamard(z)
        return unravel(vector, shape), Rotation(state.round + 1, saturated)

    def init(params: PyTree) -> Rotation:
        del params
        return Rotation(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    return Aggregator(
        init=init,
        client=client,
        combine=combine,
        server=server,
        metrics=lambda state: {"saturated_fraction": state.saturated},
        codes=True,
    )


def _quantise(
    z: jax.Array, r: jax.Array, levels: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return z on the grid, ``[D]``, and the share of it that is out of range."""
    exact = jnp.clip(_to_levels(z, r, levels), 0, levels)
    low = jnp.floor(exact)
    up = jax.random.uniform(key, z.shape, z.dtype) < exact - low
    saturated = jnp.mean((jnp.abs(z) > r).astype(jnp.float32))
    return _from_levels(low + up.astype(z.dtype), r, levels), saturated


def _mean_of_levels(
    messages: AtClients[Any], there: AtClients[jax.Array], bound: Any, bits: int
) -> Any:
    """Return the mean of the clients that are there, by a sum of integers."""
    levels, dtype = 2**bits - 1, jnp.uint8 if bits <= 8 else jnp.uint16

    def to_levels(message, is_there):
        z = message.code
        level = _to_levels(z, _reach(bound, z), levels)
        return Coded(jnp.where(is_there > 0, level, 0), message.like)

    whole = map(to_levels, messages, there)
    z = _sum_of_integers(whole.code, dtype, messages.num_clients)
    count = sum(there).astype(z.dtype)
    mean = _from_levels(z / jnp.maximum(count, 1), _reach(bound, z), levels)
    return Coded(jnp.where(count > 0, mean, 0), whole.unsafe_gather().like)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _sum_of_integers(x: AtClients[jax.Array], dtype: Any, n: int) -> jax.Array:
    """Sum whole numbers in integers; the derivative is that of ``fad.sum(x)``."""
    with clients_in_scope(n):
        whole = sum(map(lambda v: jnp.round(v).astype(dtype), x))
    return whole.astype(x.unsafe_gather().dtype)


@_sum_of_integers.defjvp
def _sum_of_integers_jvp(dtype, n, primals, tangents):
    """JAX may ask for it after the program's end, so the clients come with it."""
    with clients_in_scope(n):
        moved = sum(*tangents)
    return _sum_of_integers(*primals, dtype, n), moved


def _check_sum(call: str, clients: int, levels: int) -> None:
    if clients * levels >= 2**32:
        raise FadError(
            f"{call}: {clients} clients with levels up to {levels} can sum to "
            f"{clients * levels}, and 32 bits hold less than {2**32}. Take fewer bits."
        )


def _filled(vector: jax.Array) -> jax.Array:
    """Fill with zeros to a power of two, in float32 at least."""
    size = 1 << (vector.size - 1).bit_length()
    return jnp.pad(at_least_single(vector), (0, size - vector.size))


def _signs(seed: int, number: jax.Array, z: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), number)
    return jax.random.rademacher(key, z.shape, z.dtype)


def _reach(bound: Any, z: jax.Array) -> jax.Array:
    """Return the range r of a coordinate: ``[]``.

    A coordinate of the rotated vector is a sum of random signs times ``v_j / sqrt(D)``,
    so ``P(|z_j| > t) <= 2 exp(-t^2 D / (2 |v|^2))`` (Hoeffding), and never above |v|.
    """
    d = z.shape[-1]
    part = min(1.0, math.sqrt(2 * math.log(2 * d / _RARELY) / d))
    return jnp.asarray(bound).astype(z.dtype) * part


def _to_levels(z: jax.Array, r: jax.Array, levels: int) -> jax.Array:
    return (z / r + 1) / 2 * levels


def _from_levels(level: jax.Array, r: jax.Array, levels: int) -> jax.Array:
    return (2 * level / levels - 1) * r
