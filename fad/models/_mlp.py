"""Networks of dense layers."""

import flax.linen as nn
import jax

from fad._errors import ConfigError
from fad.models._checks import counts, positive, rows
from fad.models._scaler import check_scale, scaler

# Uniform below 1 / sqrt(fan in), the default of the code that FedNest comes with.
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Mlp(nn.Module):
    """ReLU layers and a linear one: ``[batch, *] -> [batch, classes]``.

    For 784 features and 10 classes it has 7,850 parameters with no hidden layer, and
    55,050 with two of 64.

    Attributes:
        hidden: Widths of the ReLU layers; none makes logistic regression.
        classes: Number of classes.
        scale: What the hidden layers' outputs are divided by, before the ReLU.

    Raises:
        ConfigError: A number is not positive.
        FadError: The input is no batch of real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> model = Mlp((4,), 10)
        >>> x = jnp.ones((3, 8, 8))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (3, 10)
    """

    hidden: tuple[int, ...]
    classes: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        counts("Mlp", hidden=self.hidden)
        positive("Mlp", classes=self.classes)
        check_scale("Mlp", self.scale)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        rows("Mlp", x)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(scaler(nn.Dense(width)(x), self.scale))
        return nn.Dense(self.classes)(x)


class FedNestMlp(nn.Module):
    """The hyper-representation MLP of FedNest: ``[batch, *] -> [batch, classes]``.

    A dense layer of ``width``, dropout, ReLU; a dense layer of ``classes``. The
    parameters are ``{"body": ..., "header": ...}``, the first layer, which FedNest's
    upper level learns, and the last one, its lower level's: 157,000 and 2,010 of the
    159,010 on MNIST. As in the authors' code weights start uniform below
    ``1 / sqrt(fan in)``, and dropout stands before the ReLU; it happens only where
    ``apply`` is given ``rngs={"dropout": key}``.

    Attributes:
        classes: Number of classes.
        width: Width of the body, 200 in the paper.
        dropout: Share of the body's outputs that dropout sets to zero.

    Raises:
        ConfigError: A number is not positive, or dropout is no share.
        FadError: The input is no batch of real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> model = FedNestMlp(10, width=4)
        >>> params = model.init(jax.random.key(0), jnp.ones((3, 8, 8)))["params"]
        >>> sorted(params), params["header"]["kernel"].shape
        (['body', 'header'], (4, 10))

    Source: D. A. Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and
    Compositional Optimization, ICML 2022, section 4, and the authors' code.
    """

    classes: int
    width: int = 200
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Check the options."""
        positive("FedNestMlp", classes=self.classes, width=self.width)
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"fad.models.FedNestMlp(dropout=...): expected a share in [0, 1); got "
                f"{self.dropout!r}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        rows("FedNestMlp", x)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(self.width, kernel_init=_UNIFORM, name="body")(x)
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        x = nn.relu(x)
        return nn.Dense(self.classes, kernel_init=_UNIFORM, name="header")(x)
