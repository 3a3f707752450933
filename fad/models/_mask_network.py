"""The network that says which units of a model to keep."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fad.models._checks import counts, positive

_INPUTS = 17  # The seed of the layers' inputs, the same in every network.


class MaskNetwork(nn.Module):
    """A score for each unit of a model's layers: ``() -> [size]`` for each layer.

    Each layer has a fixed random input. A GRU goes over the layers, so that what is
    kept of one depends on those before, and a linear map of each layer makes its
    scores. A unit is kept where ``sigmoid(score) > 1/2``; the scores start near
    ``start``, where all are.

    Attributes:
        sizes: The units of each layer.
        hidden: Numbers of the GRU's state, and of each layer's input.
        start: What is added to the scores.
        param_dtype: The dtype of parameters and scores.

    Raises:
        ConfigError: A number is not positive.

    Example:
        >>> network = MaskNetwork((4, 2))
        >>> params = network.init(jax.random.key(0))
        >>> [scores.shape for scores in network.apply(params)]
        [(4,), (2,)]

    Source: S. Gao et al., Network Pruning via Performance Maximization, CVPR 2021,
    section 3.3.
    """

    sizes: tuple[int, ...]
    hidden: int = 32
    start: float = 3.0
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Check the options."""
        positive("MaskNetwork", hidden=self.hidden)
        counts("MaskNetwork", sizes=self.sizes)
        super().__post_init__()

    @nn.compact
    def __call__(self) -> tuple[jax.Array, ...]:
        """Return the scores of each layer's units."""
        shape, dtype = (len(self.sizes), self.hidden), self.param_dtype
        inputs = jax.random.normal(jax.random.key(_INPUTS), shape, dtype)
        cell = nn.GRUCell(
            self.hidden,
            recurrent_kernel_init=nn.initializers.lecun_normal(),
            param_dtype=dtype,
        )
        state, scores = jnp.zeros(self.hidden, dtype), []
        for i, size in enumerate(self.sizes):
            state, out = cell(state, inputs[i])
            layer = nn.Dense(size, param_dtype=dtype)
            scores.append(layer(out) + jnp.asarray(self.start, dtype))
        return tuple(scores)
