"""Feature shift: what one client sees differs from what another sees."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import natural, real
from fad.data._federated import Federated


def rotate(
    clients: Federated,
    *,
    max_degrees: float | None = None,
    degrees: Sequence[float] | np.ndarray | None = None,
    column: str = "x",
    seed: int = 0,
) -> Federated:
    """Rotate the images of every client by an angle of its own.

    Around the middle, counter-clockwise where the first axis points down, with linear
    interpolation; outside of the image lies 0. Integers are rounded.

    Args:
        clients: The clients.
        max_degrees: Each angle is drawn evenly between minus this and this.
        degrees: The angles themselves, ``[num_clients]``, instead of max_degrees.
        column: The images, ``[N, height, width]`` or ``[N, height, width, channels]``
            integers, float32 or float64.
        seed: The seed of the angles.

    Returns:
        The clients with rotated images of the same dtype; the other arrays are shared.

    Raises:
        DataError: If there are no such images, not one of max_degrees and degrees is
            given, or it is not finite or not one number per client.

    Example:
        >>> data = Federated({"x": np.arange(4).reshape(1, 2, 2)}, np.array([0, 1]))
        >>> rotate(data, degrees=[90]).examples["x"].tolist()
        [[[1, 3], [0, 2]]]

    Source: A. Ghosh et al., An Efficient Framework for Clustered Federated Learning,
    2020, section 6, rotated MNIST (https://arxiv.org/abs/2006.04088).
    """
    from scipy import ndimage  # importing it takes longer than importing fad.data

    images = _numbers("rotate", clients, column)
    if images.ndim not in (3, 4) or images.dtype == np.float16:
        raise DataError(
            f"fad.data.rotate(column={column!r}): expected images [N, height, width] "
            "or [N, height, width, channels] of integers, float32 or float64; got "
            f"{describe(images)}."
        )
    angles = _angles(clients.num_clients, max_degrees, degrees, seed)

    def rotated(client: int, x: np.ndarray) -> np.ndarray:
        return ndimage.rotate(x, angles[client], axes=(2, 1), reshape=False, order=1)

    return _per_client(clients, column, rotated)


def add_noise(
    clients: Federated, *, scale: float, column: str = "x", seed: int
) -> Federated:
    """Add Gaussian noise that grows with the client's number.

    At client ``i`` of ``n`` its standard deviation is ``scale * (i + 1) / n``. Integers
    are rounded and clipped to what their dtype holds. A client's noise depends on the
    others by their number ``n`` alone.

    Args:
        clients: The clients.
        scale: The standard deviation at the last client, at least 0, in the units of
            the column (pixels of 0..255 are not scaled to 0..1).
        column: The array, ``[N, *]`` integers or floating-point numbers.
        seed: The seed of the noise.

    Returns:
        The clients with noise, of the same dtype; the other arrays are shared.

    Raises:
        DataError: If there is no such array of numbers, or scale is not a finite
            number of at least 0.

    Example:
        >>> data = Federated({"x": np.zeros(4, np.float32)}, np.array([0, 2, 4]))
        >>> noisy = add_noise(data, scale=0.1, seed=0).examples["x"]
        >>> noisy.dtype, bool((noisy != 0).all())
        (dtype('float32'), True)

    Source: Q. Li et al., Federated Learning on Non-IID Data Silos: An Experimental
    Study, 2022, section 4.2 (https://arxiv.org/abs/2102.02079); the deviation, as in
    their code, and not the variance grows evenly.
    """
    dtype = _numbers("add_noise", clients, column).dtype
    scale = real("add_noise", "scale", scale)
    seed = natural("add_noise", "seed", seed)

    def noisy(client: int, x: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([seed, client])
        deviation = scale * (client + 1) / clients.num_clients
        values = x + deviation * rng.standard_normal(x.shape)
        if dtype.kind in "iu":
            return _rounded(values, dtype)
        return values.astype(dtype)

    return _per_client(clients, column, noisy)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round, and clip where a cast would wrap around."""
    bounds = np.iinfo(dtype)
    rounded = np.rint(values)
    # The largest int64 is no float64: whatever reaches it is set, not cast.
    high, low = rounded >= bounds.max, rounded <= bounds.min
    result = np.where(high | low, 0, rounded).astype(dtype)
    result[high], result[low] = bounds.max, bounds.min
    return result


def _angles(
    clients: int,
    max_degrees: float | None,
    degrees: Sequence[float] | np.ndarray | None,
    seed: int,
) -> np.ndarray:
    if (max_degrees is None) == (degrees is None):
        raise DataError(
            "fad.data.rotate(): expected one of max_degrees (angles drawn at random) "
            "and degrees (one angle per client); got "
            f"{'neither' if degrees is None else 'both'}."
        )
    if max_degrees is not None:
        most = real("rotate", "max_degrees", max_degrees)
        rng = np.random.default_rng(natural("rotate", "seed", seed))
        return rng.uniform(-most, most, clients)
    angles: Any = np.asarray(degrees)
    if (
        angles.shape != (clients,)
        or angles.dtype.kind not in "iuf"
        or not np.isfinite(angles).all()
    ):
        raise DataError(
            f"fad.data.rotate(degrees=...): expected one finite angle per client, "
            f"[{clients}]; got {degrees!r}."
        )
    return angles


def _numbers(call: str, clients: Federated, column: str) -> np.ndarray:
    x = clients.examples.get(column)
    if x is None or x.dtype.kind not in "iuf":
        raise DataError(
            f"fad.data.{call}(column={column!r}): expected the name of an array of "
            "integers or floating-point numbers; got "
            f"{'no such name' if x is None else describe(x)}. There are "
            f"{', '.join(map(repr, clients.examples))}."
        )
    return x


def _per_client(
    clients: Federated, column: str, change: Callable[[int, np.ndarray], np.ndarray]
) -> Federated:
    """Return the clients with each one's column changed."""
    x = clients.examples[column]
    changed = np.empty_like(x)
    for client in np.flatnonzero(clients.sizes):
        rows = slice(clients.offsets[client], clients.offsets[client + 1])
        changed[rows] = change(int(client), x[rows])
    return dataclasses.replace(clients, examples={**clients.examples, column: changed})
