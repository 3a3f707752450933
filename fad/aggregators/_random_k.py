"""Random-K: in each round all clients send the same few random coordinates."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.aggregators._aggregator import Aggregator
from fad.aggregators._checks import check_share, share
from fad.aggregators._vector import Coded, like, ravel, unravel

PyTree = Any


def random_k(k: int | float, *, unbiased: bool = True, seed: int = 0) -> Aggregator:
    """Make the aggregator that sends k random coordinates, the same of all clients.

    Of the whole tree as one vector ``[d]``. Which ones follows from the seed and the
    number of the round, one int that the clients get; so k numbers travel up without
    their places, and they add up: a plain sum, which ``fad.check`` passes and a secure
    sum serves. The step is ``d / k`` times the mean of what is sent, zero elsewhere:
    over the rounds the mean update on average. Linear in the updates, so the derivative
    is exact.

    Args:
        k: How many coordinates, an int, or their share of d, a float in (0, 1]: rounded
            and at least one.
        unbiased: If not, without the factor ``d / k``.
        seed: Of the choice.

    Returns:
        The aggregator; its state is the number of the round.

    Raises:
        ConfigError: ``k`` is neither; FadError in a round if it is above d.

    Example:
        >>> half = random_k(2)
        >>> update = jnp.array([1.0, 2.0, 3.0, 4.0])
        >>> state = half.init(update)
        >>> message, _ = half.client((), state, (), update, None)
        >>> step, state = half.server((), state, message, update, None)
        >>> int((step != 0).sum()), int(state)
        (2, 1)

    References:
        J. Konečný et al., Federated learning: Strategies for improving communication
        efficiency, 2016, section 2 (random mask); S. Stich, J.-B. Cordonnier, M. Jaggi,
        Sparsified SGD with memory, NeurIPS 2018, definition 2.2 (rand-k).
    """
    call = f"fad.aggregators.random_k(k={k!r})"
    check_share(call, k)

    def client(theta, state, memory, update, key):
        del theta, key
        vector = ravel(update)
        places = _places(seed, state, vector.size, share(call, k, vector.size))
        return Coded(vector[places], like(update)), memory

    def server(theta, state, mean, params, key):
        del theta, params, key
        d, sent = mean.like.size, mean.code
        places = _places(seed, state, d, sent.size)
        sent = sent * (d / sent.size) if unbiased else sent
        vector = jnp.zeros(d, sent.dtype).at[places].set(sent, unique_indices=True)
        return unravel(vector, mean.like), state + 1

    def init(params: PyTree) -> jax.Array:
        del params
        return jnp.zeros((), jnp.int32)

    return Aggregator(init=init, client=client, server=server)


def _places(seed: int, number: jax.Array, size: int, k: int) -> jax.Array:
    """Return k of ``size`` places in the round of this number: ``int32[k]``."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    # Far faster than a permutation, which sorts everything, and that several times.
    _, places = jax.lax.top_k(jax.random.uniform(key, (size,), jnp.float32), k)
    return places.astype(jnp.int32)
