"""Windows that slide over images, as shifted views."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError, describe

Padding = str | int | Sequence[int | tuple[int, int]]


class Window:
    """Where a window of two axes stands on images ``[*b, h, w, c]``."""

    def __init__(self, call: str, x, size, strides, padding: Padding):
        if x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise FadError(
                f"fad.local.layers.{call}: x is {describe(x)}; expected real images "
                "[*batch, height, width, c]. Convert integers by x.astype(float)."
            )
        name = "kernel_size" if call == "conv" else "window_shape"
        self.size = pair(call, name, size)
        strides = 1 if strides is None else strides
        strides = (strides, strides) if isinstance(strides, int) else strides
        self.strides = pair(call, "strides", strides)
        image = x.shape[-3:-1]
        self.pads = _pads(call, image, self.size, self.strides, padding)
        self.shape = tuple(
            (n + sum(pad) - k) // s + 1
            for n, pad, k, s in zip(
                image, self.pads, self.size, self.strides, strict=True
            )
        )
        if min(self.shape) < 1:
            raise FadError(
                f"fad.local.layers.{call}: {name} is {self.size}, but the images are "
                f"{image} and padding {padding!r}; expected a smaller one."
            )

    def views(self, x: jax.Array, fill: float) -> Iterator[jax.Array]:
        """Yield, for each position in the window, its value in all the windows."""
        pads = [(0, 0, 0)] * (x.ndim - 3) + [(*p, 0) for p in self.pads] + [(0, 0, 0)]
        x = jax.lax.pad(x, jnp.array(fill, x.dtype), pads)
        (h, w), (sh, sw) = self.shape, self.strides
        for i, j in itertools.product(*map(range, self.size)):
            start = [0] * (x.ndim - 3) + [i, j, 0]
            stop = [*x.shape[:-3], i + sh * (h - 1) + 1, j + sw * (w - 1) + 1]
            steps = [1] * (x.ndim - 3) + [sh, sw, 1]
            yield jax.lax.slice(x, start, [*stop, x.shape[-1]], steps)


def pair(call: str, name: str, value: Any) -> tuple[int, int]:
    """Return ``value`` as two positive ints, or raise."""
    both = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(both) != 2 or not all(isinstance(v, int) and v > 0 for v in both):
        raise FadError(
            f"fad.local.layers.{call}: {name} is {value!r}; expected two positive "
            "ints, of height and width."
        )
    return both


def _pads(call, image, size, strides, padding) -> list[tuple[int, int]]:
    if padding in ("SAME", "VALID"):
        return jax.lax.padtype_to_pads(image, size, strides, padding)
    pads = (padding, padding) if isinstance(padding, int) else padding
    if not isinstance(pads, str) and len(pads) == 2:
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in pads]
        if all(len(p) == 2 and min(p) >= 0 for p in pairs):
            return pairs
    raise FadError(
        f"fad.local.layers.{call}: padding is {padding!r}; expected 'SAME', 'VALID', "
        "an int, or an int or pair of ints for each of height and width."
    )
