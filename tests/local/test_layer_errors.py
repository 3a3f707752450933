"""What the layers refuse."""

from typing import Any

import jax
import numpy as np
import pytest

import fad
from fad.local import layers

_X: Any = np.ones((1, 4, 4, 2), np.float32)
_K: Any = np.ones((3, 3, 2, 5), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layers.conv(_X, _K[:, :, :1]),
            r"x is float32\[1,4,4,2\] and kernel fl",
        ),
        (lambda: layers.conv(_X[0, 0], _K), r"conv: x is float32\[4,2\] and kernel"),
        (lambda: layers.conv(_X, _K[0]), r"Put the channels last"),
        (lambda: layers.conv(_X.astype(int), _K), r"conv: x is int64.*x.astype\(float"),
        (
            lambda: layers.conv(_X, _K, implementation="fft"),  # type: ignore[arg-type]
            r"implementation is 'fft'; expected one of 'auto', 'patches', 'lax'",
        ),
        (
            lambda: layers.conv(_X[:, :2], _K, padding="VALID"),
            r"kernel_size is \(3, 3\), but the images are \(2, 4\) and padding 'VALID'",
        ),
        (
            lambda: layers.conv(_X, _K, padding="CIRCULAR"),
            r"padding is 'CIRCULAR'; expected 'SAME', 'VALID', an int",
        ),
        (lambda: layers.conv(_X, _K, padding=-1), r"padding is -1; expected"),
        (lambda: layers.conv(_X, _K, padding=(1, 1, 1)), r"padding is \(1, 1, 1\)"),
        (
            lambda: layers.conv(_X, _K, strides=0),
            r"conv: strides is \(0, 0\); expected",
        ),
        (
            lambda: layers.Conv(3, 3).init(jax.random.key(0), _X),  # type: ignore[arg-type]
            r"Conv: kernel_size is 3; expected two positive ints",
        ),
        (
            lambda: layers.max_pool(_X, (2, 2, 1)),
            r"max_pool: window_shape is \(2, 2, 1\); expected two positive ints",
        ),
        (
            lambda: layers.avg_pool(_X, (5, 1)),
            r"avg_pool: window_shape is \(5, 1\), but the images are \(4, 4\)",
        ),
        (
            lambda: layers.max_pool(_X.astype(np.int32), (2, 2)),
            r"max_pool: x is int32\[1,4,4,2\]; expected real images",
        ),
        (
            lambda: layers.StaticBatchNorm().init(jax.random.key(0), _X, _X[0] > 0),
            r"StaticBatchNorm: mask is bool\[4,4,2\]; expected one bool per row, \[1\]",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(fad.FadError, match=message):
        call()
