"""Top-K: each client sends its largest coordinates, and keeps the others."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.aggregators._aggregator import Aggregator
from fad.aggregators._checks import check_share, share
from fad.aggregators._vector import Coded, like, ravel, unravel
from fad.placement import AtClients
from fad.primitives import map, sum

PyTree = Any


def top_k(k: int | float, *, error_feedback: bool = True) -> Aggregator:
    """Make the aggregator that sends of each update the k largest coordinates.

    Of the whole tree as one vector ``[d]``, with the client's memory ``e: [d]``::

        e = e + update
        send the k coordinates of e that are largest in magnitude
        e = e - what is sent

    On the wire are k numbers in the update's dtype and their k places in int32. The
    server has to decode each client's code, so ``fad.check`` refuses it unless told
    ``allow="decode"``. The derivative is that of the coordinates that are sent and of
    the memory, with the choice held (almost everywhere the exact one). A chain in which
    something comes after it that changes messages, or that sums in another way, goes
    without the code.

    Args:
        k: How many coordinates, an int, or their share of d, a float in (0, 1]: rounded
            and at least one.
        error_feedback: If not, what is not sent is lost, and there is no memory.

    Returns:
        The aggregator; a client's memory is ``[d]``.

    Raises:
        ConfigError: ``k`` is neither; FadError in a round if it is above d.

    Example:
        >>> half = top_k(0.5)
        >>> e = half.init_client(jnp.zeros(4))
        >>> sent, e = half.client((), (), e, jnp.array([1.0, -4.0, 2.0, 3.0]), None)
        >>> sent.tolist(), e.tolist()
        ([0.0, -4.0, 0.0, 3.0], [1.0, 0.0, 2.0, 0.0])

    References:
        S. Stich, J.-B. Cordonnier, M. Jaggi, Sparsified SGD with memory, NeurIPS 2018,
        algorithm 1; S. Karimireddy et al., Error feedback fixes SignSGD and other
        gradient compression schemes, ICML 2019, algorithm 2.
    """
    call = f"fad.aggregators.top_k(k={k!r})"
    check_share(call, k)

    def client(theta, state, memory, update, key):
        del theta, state, key
        vector = ravel(update)
        vector = vector + memory.astype(vector.dtype) if error_feedback else vector
        code = encode(vector, share(call, k, vector.size))
        sent = unravel(decode(code, vector.size), like(update))
        return sent, vector - ravel(sent) if error_feedback else memory

    def total(messages: AtClients[PyTree]) -> PyTree:
        vectors = map(lambda tree: Coded(ravel(tree), like(tree)), messages)
        x, shape = vectors.unsafe_gather().code, vectors.unsafe_gather().like
        one = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        wire = jax.eval_shape(lambda v: encode(v, share(call, k, v.size)), one)
        return unravel(sum(vectors, wire=Coded(wire, shape)).code, shape)

    def init_client(params: PyTree) -> jax.Array:
        return jnp.zeros_like(ravel(params))

    aggregator = Aggregator(client=client, total=total, codes=True)
    return (
        aggregator._replace(init_client=init_client) if error_feedback else aggregator
    )


def encode(vector: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return the k largest coordinates and their places: ``[d] -> [k], int32[k]``.

    Of coordinates of one magnitude those that come first are taken.
    """
    _, places = jax.lax.top_k(jax.lax.stop_gradient(jnp.abs(vector)), k)
    places = places.astype(jnp.int32)
    return vector[places], places


def decode(code: tuple[jax.Array, jax.Array], size: int) -> jax.Array:
    """Return the vector with zeros elsewhere: ``[k], int32[k] -> [d]``."""
    values, places = code
    return jnp.zeros(size, values.dtype).at[places].set(values, unique_indices=True)
