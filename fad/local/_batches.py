"""The batches of one client, padded and masked."""

from typing import Any, NamedTuple


class Batches(NamedTuple):
    """One client's examples as batches, with padding marked.

    Clients are ragged; padding makes them stack. A padded row takes no part in any loss
    or count, a batch of padding alone is no step, and an empty client has only padding.
    A cohort is ``fad.AtClients(Batches(...))``, each leaf with a leading client axis.

    Attributes:
        examples: A pytree of arrays ``[steps, batch, *]``.
        mask: ``[steps, batch]`` bool, False where the row is padding.
        client: ``[]`` int32, the client's number in the federation; random streams are
            derived from it, so they do not depend on the cohort or its sharding.

    Example:
        >>> import jax.numpy as jnp
        >>> batches = Batches(
        ...     examples={"x": jnp.ones((2, 4, 3))},
        ...     mask=jnp.array([[True] * 4, [True, False, False, False]]),
        ...     client=jnp.int32(7),
        ... )
        >>> int(batches.mask.sum())
        5
    """

    examples: Any
    mask: Any
    client: Any
