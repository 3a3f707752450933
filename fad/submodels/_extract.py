"""Which units of a layer a client gets: pure functions of round, key or scores.

Each returns the numbers of ``keep`` units of ``size``. ``keep`` is static, all else may
be traced. HeteroFL takes the first units, FedRolex a rolling window, Federated Dropout
random ones; the largest norm is magnitude pruning, and any other scores are learned.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError, describe


def kept(size: int, width: float) -> int:
    """Return how many of ``size`` units a model of this width keeps.

    They are ``max(1, ceil(size * width))``, up to rounding errors of the product.

    Args:
        size: The units of the full layer.
        width: The share of units kept, in (0, 1].

    Returns:
        The number of units, at least 1.

    Raises:
        FadError: ``size`` is no positive int, or ``width`` not in (0, 1].

    Example:
        >>> kept(100, 0.07), kept(10, 0.25), kept(3, 0.125)
        (7, 3, 1)
    """
    _count("kept", "size", size)
    number = isinstance(width, numbers.Real) and not isinstance(width, bool)
    if not number or not 0 < width <= 1:
        raise FadError(
            f"fad.submodels.kept(width=...): expected a share of the units in (0, 1], "
            f"no budget of zero or above one; got {describe(width)}. The whole model "
            "has width 1."
        )
    return max(1, math.ceil(round(size * float(width), 6)))


def static(size: int, keep: int) -> jax.Array:
    """Return the first units, ``[keep]`` int32: HeteroFL's.

    Args:
        size: The units of the layer.
        keep: How many of them to take.

    Returns:
        Their numbers, rising.

    Raises:
        FadError: ``keep`` is not in 1 to ``size``.

    Example:
        >>> static(6, 3).tolist()
        [0, 1, 2]

    Source: E. Diao, J. Ding, V. Tarokh, HeteroFL: Computation and Communication
    Efficient Federated Learning for Heterogeneous Clients, ICLR 2021, section 3.
    """
    _keep("static", size, keep)
    return jnp.arange(keep, dtype=jnp.int32)


def rolling(size: int, keep: int, round: Any) -> jax.Array:
    """Return the units of FedRolex's window, ``[keep]`` int32.

    ``unit_i = (round + i) mod size``: the window starts at ``round mod size``, moves on
    by one unit a round and wraps around, so every unit is in ``keep`` of ``size``
    rounds. That is the paper's window. The authors' code makes it by
    ``torch.roll(arange(size), round mod size)``, which shifts the numbers the other
    way: its window starts at ``-round mod size`` and moves back. It is this function's
    at ``-round``, index for index.

    Args:
        size: The units of the layer.
        keep: How many of them to take.
        round: The round's number, an int or an integer array ``[]``.

    Returns:
        Their numbers, in the order of the window.

    Raises:
        FadError: ``keep`` is not in 1 to ``size``, or ``round`` is no integer.

    Example:
        >>> rolling(5, 3, 4).tolist()
        [4, 0, 1]
        >>> rolling(5, 3, -1).tolist()  # the code's round 1
        [4, 0, 1]

    Source: S. Alam, L. Liu, M. Yan, M. Zhang, FedRolex: Model-Heterogeneous Federated
    Learning with Rolling Sub-Model Extraction, NeurIPS 2022, section 3, and the
    authors' code.
    """
    _keep("rolling", size, keep)
    number = jnp.asarray(round)
    if number.shape or not jnp.issubdtype(number.dtype, jnp.integer):
        raise FadError(
            "fad.submodels.rolling(round=...): expected the round's number, one "
            f"integer; got {describe(round)}."
        )
    start = (number % size).astype(jnp.int32)
    return (start + jnp.arange(keep, dtype=jnp.int32)) % size


def random(size: int, keep: int, key: jax.Array) -> jax.Array:
    """Return random units, ``[keep]`` int32: Federated Dropout's.

    Args:
        size: The units of the layer.
        keep: How many of them to take.
        key: A random key.

    Returns:
        Their numbers, rising, none twice; every set is as likely.

    Raises:
        FadError: ``keep`` is not in 1 to ``size``.

    Example:
        >>> units = random(100, 3, jax.random.key(0)).tolist()
        >>> len(set(units)), units == sorted(units)
        (3, True)

    Source: S. Caldas, J. Konečný, H. B. McMahan, A. Talwalkar, Expanding the Reach of
    Federated Learning by Reducing Client Resource Requirements, 2018
    (https://arxiv.org/abs/1812.07210).
    """
    _keep("random", size, keep)
    order = jax.random.permutation(key, size)
    return jnp.sort(order[:keep]).astype(jnp.int32)


def top(scores: jax.Array, keep: int) -> jax.Array:
    """Return the units with the largest scores, ``[size] -> [keep]`` int32.

    Of equal scores the lower number comes first; NaN comes after all others.

    Args:
        scores: A real number for each unit: norms, or learned ones.
        keep: How many units to take.

    Returns:
        Their numbers, rising.

    Raises:
        FadError: ``scores`` is no vector of real numbers, or ``keep`` is not in 1 to
            its length.

    Example:
        >>> top(jnp.array([1.0, 3.0, jnp.nan, 1.0, 2.0]), 3).tolist()
        [0, 1, 4]
    """
    scores = jnp.asarray(scores)
    if scores.ndim != 1 or not jnp.issubdtype(scores.dtype, jnp.floating):
        raise FadError(
            "fad.submodels.top(scores=...): expected a real number for each unit, "
            f"[size]; got {describe(scores)}. Convert integers by scores.astype(float)."
        )
    _keep("top", scores.size, keep)
    order = jnp.argsort(-scores, stable=True)
    return jnp.sort(order[:keep]).astype(jnp.int32)


def _count(call: str, name: str, n: Any) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise FadError(
            f"fad.submodels.{call}({name}=...): expected a positive int; got "
            f"{describe(n)}."
        )


def _keep(call: str, size: Any, keep: Any) -> None:
    _count(call, "size", size)
    if not isinstance(keep, int) or isinstance(keep, bool) or not 1 <= keep <= size:
        raise FadError(
            f"fad.submodels.{call}(keep=...): expected an int from 1 to the layer's "
            f"{size} units; got {describe(keep)}. fad.submodels.kept(size, width) "
            "gives it."
        )
