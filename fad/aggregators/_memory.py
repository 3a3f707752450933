"""What the server of a learned aggregator remembers of the updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any

DECAYS = (0.5, 0.9, 0.98)  # of the momenta
SECOND_DECAY = 0.95  # of the squares, as in Adam


class Memory(NamedTuple):
    """Running means of the mean updates, not yet corrected for their start at zero.

    Attributes:
        round: ``[]`` int32, the rounds seen.
        momenta: One tree like the parameters per decay.
        second: A tree of running mean squares.
    """

    round: jax.Array
    momenta: tuple[PyTree, ...]
    second: PyTree


def empty(params: PyTree) -> Memory:
    """Return the memory before the first round."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Memory(jnp.zeros((), jnp.int32), tuple(zeros for _ in DECAYS), zeros)


def remember(memory: Memory, mean: PyTree) -> Memory:
    """Return the memory after a round."""

    def running(decay, old, new):
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)

    momenta = zip(DECAYS, memory.momenta, strict=True)
    return Memory(
        round=memory.round + 1,
        momenta=tuple(running(decay, m, mean) for decay, m in momenta),
        second=running(SECOND_DECAY, memory.second, jax.tree.map(jnp.square, mean)),
    )


def unbiased(memory: Memory) -> tuple[tuple[PyTree, ...], PyTree]:
    """Return the momenta and mean squares with the weight of their start removed."""

    def correct(decay, tree):
        def leaf(x):
            rounds = memory.round.astype(x.dtype)
            return x / (1 - jnp.power(jnp.asarray(decay, x.dtype), rounds))

        return jax.tree.map(leaf, tree)

    momenta = zip(DECAYS, memory.momenta, strict=True)
    return tuple(correct(d, m) for d, m in momenta), correct(
        SECOND_DECAY, memory.second
    )
