"""The network of the learned aggregators: one small MLP for every coordinate."""

import flax.linen as nn
import jax

from fad.models._checks import counts, positive, rows


class CoordinateMlp(nn.Module):
    """ReLU layers and a linear one that starts at zero: ``[p, f] -> [p, outputs]``.

    Each row is a coordinate of a model, with its own features; all share the network.
    As the last layer starts at zero, what is built on the network starts as it would be
    without.

    Attributes:
        hidden: Widths of the ReLU layers.
        outputs: Numbers per coordinate.

    Raises:
        ConfigError: A number is not positive.
        FadError: The input is no batch of real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> net, x = CoordinateMlp((4,), 2), jnp.ones((3, 5))
        >>> net.apply(net.init(jax.random.key(0), x), x).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    hidden: tuple[int, ...]
    outputs: int

    def __post_init__(self) -> None:
        """Check the options."""
        counts("CoordinateMlp", hidden=self.hidden)
        positive("CoordinateMlp", outputs=self.outputs)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the numbers of each coordinate."""
        rows("CoordinateMlp", x)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        zeros = nn.initializers.zeros
        return nn.Dense(self.outputs, kernel_init=zeros)(x)
