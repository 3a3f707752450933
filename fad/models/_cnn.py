"""Convolutional networks of the federated literature, small ones."""

import flax.linen as nn
import jax

from fad.local.layers import Conv, max_pool
from fad.models._checks import images, layer_widths, positive
from fad.models._scaler import check_scale, scaler

_FEDAVG = (1, 2, 16)  # The layers' sizes, in multiples of the first.


class FedAvgCnn(nn.Module):
    """The CNN of FedAvg: ``[batch, h, w, c] -> [batch, classes]``.

    Convolution 5x5 to ``width`` channels, ReLU, largest of 2x2; convolution 5x5 to
    ``2 * width`` channels, ReLU, largest of 2x2; dense layer of ``16 * width``, ReLU;
    dense layer of ``classes``. The convolutions keep the image's size. On MNIST it has
    1,663,370 parameters, as the paper says.

    Attributes:
        classes: Number of classes.
        width: Channels of the first layer, 32 in the paper; or a size for each of the
            three hidden layers.
        scale: What the hidden layers' outputs are divided by, before the ReLU.

    Raises:
        ConfigError: A number is not positive.
        FadError: The input is no batch of real images.

    Example:
        >>> import jax.numpy as jnp
        >>> model = FedAvgCnn(10, width=2)
        >>> x = jnp.ones((3, 8, 8, 1))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (3, 10)

    Source: B. McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, AISTATS 2017, section 3 (https://arxiv.org/abs/1602.05629).
    """

    classes: int
    width: int | tuple[int, int, int] = 32
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        positive("FedAvgCnn", classes=self.classes)
        layer_widths("FedAvgCnn", self.width, _FEDAVG)
        check_scale("FedAvgCnn", self.scale)
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        """The sizes of the three hidden layers."""
        return layer_widths("FedAvgCnn", self.width, _FEDAVG)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        images("FedAvgCnn", x)
        *channels, features = self.widths
        for width in channels:
            x = nn.relu(scaler(Conv(width, (5, 5))(x), self.scale))
            x = max_pool(x, (2, 2), (2, 2))
        x = nn.Dense(features)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.classes)(nn.relu(scaler(x, self.scale)))


class FedSepCnn(nn.Module):
    """The four-layer CNN of FedSep: ``[batch, h, w, c] -> [batch, classes]``.

    Three convolutions 3x3 with stride 2 and one 2x2 with stride 1, each to ``width``
    channels and followed by a ReLU, none padded; then a dense layer of ``classes``.
    Images have to be at least 23x23.

    The paper gives the kernels' sizes and numbers (32 for MNIST, 64 for CIFAR) and
    "around 1e5" parameters. Strides, padding and the absence of pooling and of
    normalisation are chosen here: with them the 2x2 kernel covers what is left of an
    MNIST image. There are 23,274 parameters for MNIST with width 32, and 94,666 for
    CIFAR-10 with width 64.

    Attributes:
        classes: Number of classes.
        width: Channels of every convolution.
        scale: What the hidden layers' outputs are divided by, before the ReLU.

    Raises:
        ConfigError: A number is not positive.
        FadError: The input is no batch of real images, or they are too small.

    Example:
        >>> import jax.numpy as jnp
        >>> model = FedSepCnn(10, width=2)
        >>> x = jnp.ones((3, 28, 28, 1))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (3, 10)

    Source: J. Li and H. Huang, Resolving the Tug-of-War: A Separation of Communication
    and Learning in Federated Learning, NeurIPS 2023, section 4.
    """

    classes: int
    width: int = 32
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        positive("FedSepCnn", classes=self.classes, width=self.width)
        check_scale("FedSepCnn", self.scale)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        images("FedSepCnn", x)
        for size, stride in ((3, 2), (3, 2), (3, 2), (2, 1)):
            layer = Conv(self.width, (size, size), strides=stride, padding="VALID")
            x = nn.relu(scaler(layer(x), self.scale))
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))
