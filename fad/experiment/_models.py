"""The models of the ready-made tasks, in Flax."""

from collections.abc import Callable

import flax.linen as nn
import jax

from fad.experiment._config import ModelConfig


class Mlp(nn.Module):
    """ReLU layers and a linear one: ``[batch, *] -> [batch, classes]``.

    Attributes:
        hidden: Widths of the ReLU layers; none makes logistic regression.
        classes: Number of classes.
    """

    hidden: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


# One entry per value of ModelConfig.name: add yours here.
MODELS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "mlp": lambda model, classes: Mlp(model.hidden, classes),
    "logistic": lambda model, classes: Mlp((), classes),
}
