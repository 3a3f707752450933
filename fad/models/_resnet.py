"""A residual network for small images, with norms that suit clients."""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax

from fad._errors import ConfigError
from fad.local.layers import Conv, StaticBatchNorm
from fad.models._checks import counts, images, layer_widths, positive
from fad.models._scaler import check_scale, scaler

Norm = Literal["group", "static_batch"]


class ResNet18(nn.Module):
    """Pre-activation ResNet-18 for small images: ``[batch, h, w, c] -> [batch, k]``.

    A convolution 3x3 to ``width`` channels; four stages of two blocks, with 1, 2, 4 and
    8 times ``width`` channels, of which the last three start with stride 2; norm, ReLU,
    mean over the image; a dense layer of ``k = classes``. A block is norm, ReLU,
    convolution 3x3, norm, ReLU, convolution 3x3, and its input is added, after a
    convolution 1x1 of the first ReLU where the shape changes. Convolutions have no
    bias. With 10 classes and three channels there are 11,172,170 parameters, with
    either norm.

    ``group`` norm has two groups of channels, as in Reddi et al.; an example does not
    depend on others. ``static_batch`` is ``fad.local.layers.StaticBatchNorm``: there
    are no running statistics, so an evaluation too uses those of the batch it is given,
    and its result depends on the batch. Evaluate large batches of all classes. A padded
    batch needs its ``mask`` as second argument, ``[batch]`` bool.

    Attributes:
        classes: Number of classes.
        norm: ``"group"`` or ``"static_batch"``.
        width: Channels of the first stage, 64 in the papers; or those of each stage.
        blocks: Blocks of each stage; other ones make a shorter or a longer network.
        scale: What every norm's input is divided by, as if each convolution's output
            were. A norm undoes it but for its epsilon.

    Raises:
        ConfigError: A number is not positive, or the norm is another.
        FadError: The input is no batch of real images.

    Example:
        >>> import jax.numpy as jnp
        >>> model = ResNet18(10, width=2, blocks=(1, 1))
        >>> x = jnp.ones((3, 8, 8, 1))
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
        (3, 10)

    Source: K. He et al., Identity Mappings in Deep Residual Networks, ECCV 2016; widths
    and static norm: E. Diao, J. Ding, V. Tarokh, HeteroFL, ICLR 2021; group norm:
    K. Hsieh et al., The Non-IID Data Quagmire of Decentralized Machine Learning, ICML
    2020, and S. Reddi et al., Adaptive Federated Optimization, ICLR 2021.
    """

    classes: int
    norm: Norm = "group"
    width: int | tuple[int, ...] = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        positive("ResNet18", classes=self.classes)
        counts("ResNet18", blocks=self.blocks)
        check_scale("ResNet18", self.scale)
        if self.norm not in get_args(Norm):
            raise ConfigError(
                f"fad.models.ResNet18(norm=...): expected one of "
                f"{', '.join(map(repr, get_args(Norm)))}; got {self.norm!r}."
            )
        if self.norm == "group" and any(width % 2 for width in self.widths):
            raise ConfigError(
                f"fad.models.ResNet18(width=...): expected an even int, for two groups "
                f"of channels; got {self.width}."
            )
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each stage."""
        doubled = tuple(2**stage for stage in range(len(self.blocks)))
        return layer_widths("ResNet18", self.width, doubled)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Return the logits; rows off the ``mask`` count in no statistics."""
        images("ResNet18", x)
        widths = self.widths
        norm = functools.partial(_norm, self.norm, self.scale)
        x = _conv(widths[0])(x)
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = _Block(widths[stage], strides, norm)(x, mask)
        x = nn.relu(norm(x, mask)).mean((1, 2))
        return nn.Dense(self.classes)(x)


class _Block(nn.Module):
    """Two convolutions and the way around them."""

    channels: int
    strides: int
    norm: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x, mask):
        active = nn.relu(self.norm(x, mask))
        out = _conv(self.channels, strides=self.strides)(active)
        out = _conv(self.channels)(nn.relu(self.norm(out, mask)))
        if self.strides > 1 or x.shape[-1] != self.channels:
            x = _conv(self.channels, size=1, strides=self.strides)(active)
        return x + out


def _conv(channels: int, *, size: int = 3, strides: int = 1) -> Conv:
    # PyTorch's padding, the one of the papers' code: of strided 3x3 both sides get 1.
    pad = size // 2
    return Conv(channels, (size, size), strides=strides, padding=pad, use_bias=False)


def _norm(norm: Norm, scale: float, x, mask) -> jax.Array:
    x = scaler(x, scale)
    if norm == "group":
        return nn.GroupNorm(2)(x)
    return StaticBatchNorm()(x, mask)
