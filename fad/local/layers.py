"""Layers that are fast where clients train: in loop bodies, with weights per client.

XLA on CPU is slow at a convolution's gradient inside a loop, and a convolution with
other weights for each client is a grouped one, slow on GPU. Here a convolution is a
matrix product with the image's patches, and pooling takes no windowed reduction. All is
made of slices, products and selections: any derivative, in any mode, works.

The modules need Flax; ``import fad`` does not import them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from fad._errors import FadError, describe
from fad.local._window import Padding, Window, pair

Implementation = Literal["auto", "patches", "lax"]


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    implementation: Implementation = "auto",
) -> jax.Array:
    """Return the 2-D convolution of ``x`` with ``kernel``.

    ``x: [*b, h, w, c], kernel: [kh, kw, c, d] -> [*b, h', w', d]``

    Args:
        x: Images, channels last.
        kernel: The weights, of ``x``'s dtype.
        strides: One stride, or one for each of height and width.
        padding: ``"SAME"``, ``"VALID"``, an int for all sides, or for height and width
            an int or a pair ``(low, high)`` each.
        implementation: ``"patches"`` multiplies a matrix of the ``kh * kw`` shifted
            images with the kernel, and holds ``kh * kw`` copies of ``x`` meanwhile;
            ``"lax"`` is ``jax.lax.conv_general_dilated``; ``"auto"`` is ``"lax"`` on
            TPU and ``"patches"`` elsewhere.

    Returns:
        The filtered images.

    Raises:
        FadError: If an argument is not as above, or no patch fits into the image.

    Example:
        >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> conv(x, jnp.ones((2, 2, 1, 1)), padding="VALID")[0, :, :, 0].tolist()
        [[8.0, 12.0], [20.0, 24.0]]
    """
    if kernel.ndim != 4 or x.ndim < 3 or x.shape[-1] != kernel.shape[2]:
        raise FadError(
            f"fad.local.layers.conv: x is {describe(x)} and kernel {describe(kernel)}; "
            "expected [*batch, height, width, c] and [kh, kw, c, d]. Put the channels "
            "last."
        )
    choices = ("auto", "patches", "lax")
    if implementation not in choices:
        raise FadError(
            f"fad.local.layers.conv: implementation is {implementation!r}; expected "
            f"one of {', '.join(map(repr, choices))}."
        )
    if implementation == "auto":
        implementation = "lax" if jax.default_backend() == "tpu" else "patches"
    window = Window("conv", x, kernel.shape[:2], strides, padding)
    images = x.reshape(-1, *x.shape[-3:])
    if implementation == "lax":
        out = jax.lax.conv_general_dilated(
            images,
            kernel,
            window.strides,
            window.pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    else:
        patches = jnp.concatenate([*window.views(images, 0)], axis=-1)
        columns = patches.reshape(-1, patches.shape[-1])
        out = columns @ kernel.reshape(-1, kernel.shape[-1])
    return out.reshape(*x.shape[:-3], *window.shape, kernel.shape[-1])


class Conv(nn.Module):
    """A 2-D convolution: ``[*b, h, w, c] -> [*b, h', w', features]``.

    Parameters and values are those of ``flax.linen.Conv``, for which it stands in where
    there are no groups and no dilation.

    Attributes:
        features: Number of channels out.
        kernel_size: Height and width of the kernel.
        strides: As in ``conv``.
        padding: As in ``conv``.
        use_bias: Whether to add a bias per feature.
        dtype: The dtype to compute in; by default what input and params promote to.
        param_dtype: The dtype of the params.
        kernel_init: Initializer of ``kernel``.
        bias_init: Initializer of ``bias``.
        implementation: As in ``conv``.

    Example:
        >>> layer = Conv(4, (3, 3), strides=2)
        >>> x = jnp.ones((10, 28, 28, 1))
        >>> params = layer.init(jax.random.key(0), x)
        >>> layer.apply(params, x).shape
        (10, 14, 14, 4)
    """

    features: int
    kernel_size: Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the filtered images."""
        size = pair("Conv", "kernel_size", self.kernel_size)
        shape = (*size, jnp.shape(x)[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias", self.bias_init, (self.features,), self.param_dtype
            )
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        out = conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            implementation=self.implementation,
        )
        return out if bias is None else out + jnp.expand_dims(bias, range(out.ndim - 1))


def max_pool(
    x: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Return the largest value of each window: ``[*b, h, w, c] -> [*b, h', w', c]``.

    Takes the arguments of ``flax.linen.max_pool`` and gives its values; of equal values
    the first of the window gets the derivative, as there.

    Args:
        x: Images of real numbers, channels last.
        window_shape: Height and width of the window.
        strides: As in ``conv``; 1 by default.
        padding: As in ``conv``; padding is never the largest.

    Returns:
        The maxima; NaN for a window with a NaN.

    Raises:
        FadError: If an argument is not as above, or no window fits into the image.

    Example:
        >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> max_pool(x, (2, 2), (2, 2))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    window = Window("max_pool", x, window_shape, strides, padding)
    # Not jnp.maximum: it shares the derivative of equal values, many after a ReLU.
    first = lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b)  # noqa: E731
    return functools.reduce(first, window.views(x, -jnp.inf))


def avg_pool(
    x: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """Return the mean of each window: ``[*b, h, w, c] -> [*b, h', w', c]``.

    Takes the arguments of ``flax.linen.avg_pool`` and gives its values.

    Args:
        x: Images of real numbers, channels last.
        window_shape: Height and width of the window.
        strides: As in ``conv``; 1 by default.
        padding: As in ``conv``.
        count_include_pad: Whether padding counts as zeros of the window.

    Returns:
        The means.

    Raises:
        FadError: If an argument is not as above, or no window fits into the image.

    Example:
        >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> avg_pool(x, (2, 2), (2, 2))[0, :, :, 0].tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    window = Window("avg_pool", x, window_shape, strides, padding)
    total = functools.reduce(jnp.add, window.views(x, 0))
    if count_include_pad:
        return total / float(window.size[0] * window.size[1])
    return total / functools.reduce(jnp.add, window.views(jnp.ones_like(x), 0))


class StaticBatchNorm(nn.Module):
    """Batch normalisation without running averages: ``[batch, *, c] -> [batch, *, c]``.

    Each channel gets mean 0 and variance 1 over the real rows of the batch at hand, in
    training and evaluation alike, so no client's statistics are communicated. What
    depends on no other row is ``flax.linen.GroupNorm``, which needs no mask.

    HeteroFL (Diao, Ding, Tarokh, ICLR 2021), section 3, "static batch normalization".

    Attributes:
        epsilon: Added to the variance.
        param_dtype: The dtype of the params ``scale`` and ``bias``, each ``[c]``.

    Example:
        >>> layer = StaticBatchNorm()
        >>> x = jnp.array([[1.0], [3.0], [99.0]])
        >>> params = layer.init(jax.random.key(0), x)
        >>> real = jnp.array([True, True, False])
        >>> layer.apply(params, x, real)[:2, 0].round(3).tolist()
        [-1.0, 1.0]
    """

    epsilon: float = 1e-5
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalise ``x``; rows off the ``mask`` (``[batch]`` bool) count for nothing.

        A loss gets only the examples, so a padded batch's mask has to be one of them.
        """
        shape = jnp.shape(x)
        mask = jnp.ones(shape[:1], bool) if mask is None else mask
        if jnp.shape(mask) != shape[:1]:
            raise FadError(
                f"fad.local.layers.StaticBatchNorm: mask is {describe(mask)}; expected "
                f"one bool per row, [{', '.join(map(str, shape[:1]))}]."
            )
        scale = self.param("scale", nn.initializers.ones, shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], self.param_dtype)
        x, scale, bias = promote_dtype(x, scale, bias)
        # A batch of padding alone has no mean, but must have finite derivatives.
        real = jnp.expand_dims(mask | ~jnp.any(mask), range(1, x.ndim))
        axes = tuple(range(x.ndim - 1))
        mean = lambda v: jnp.mean(v, axes, where=real, keepdims=True)  # noqa: E731
        centred = x - mean(x)
        scale, bias = (jnp.expand_dims(v, axes) for v in (scale, bias))
        return centred * jax.lax.rsqrt(mean(centred**2) + self.epsilon) * scale + bias
