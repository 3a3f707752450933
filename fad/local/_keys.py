"""Random streams of clients."""

import jax


def client_key(key: jax.Array, client: jax.Array) -> jax.Array:
    """Return a client's own PRNG key for this round.

    The stream depends on the round's key and on the client's number alone, so it is the
    same however the clients are sampled into cohorts, chunked, or sharded.

    Args:
        key: The round's key, the same for all clients.
        client: ``[]`` int, the client's number in the federation.

    Returns:
        A key of the same kind.

    Example:
        >>> import jax.numpy as jnp
        >>> key = jax.random.key(0)
        >>> cohort = jax.vmap(client_key, (None, 0))(key, jnp.array([5, 9]))
        >>> bool(cohort[1] == client_key(key, 9))
        True
    """
    return jax.random.fold_in(key, client)
