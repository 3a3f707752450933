"""Clients of unequal sizes, whose examples are drawn at random."""

from collections.abc import Sequence

import numpy as np

from fad._errors import DataError
from fad.data._checks import check_minimum, natural, positive, real
from fad.data._partition import Partition


def partition_sizes(
    n: int, sizes: Sequence[int] | np.ndarray, *, seed: int
) -> Partition:
    """Deal ``n`` examples at random into parts of the given sizes.

    Args:
        n: The number of examples.
        sizes: The size of every client, ``[clients]`` integers of at least 0 whose
            sum is ``n``.
        seed: The seed of the shuffle.

    Returns:
        One sorted index array per client.

    Raises:
        DataError: If n is not a positive integer, there are no sizes, a size is not
            an integer of at least 0, or their sum is not n.

    Example:
        >>> parts = partition_sizes(6, [1, 0, 5], seed=0)
        >>> [len(part) for part in parts]
        [1, 0, 5]
    """
    call = "partition_sizes"
    n = positive(call, "n", n)
    if not isinstance(sizes, Sequence | np.ndarray):
        raise DataError(
            f"fad.data.{call}(sizes=...): expected one size per client; got {sizes!r}."
        )
    wanted = [natural(call, f"sizes[{i}]", size) for i, size in enumerate(sizes)]
    if not wanted or sum(wanted) != n:
        raise DataError(
            f"fad.data.{call}(sizes=...): expected one size per client, {n} in all "
            f"(n={n}); got {len(wanted)} sizes, {sum(wanted)} in all."
        )
    order = np.random.default_rng(natural(call, "seed", seed)).permutation(n)
    return [np.sort(part) for part in np.split(order, np.cumsum(wanted)[:-1])]


def partition_power_law(
    n: int, clients: int, *, exponent: float, minimum: int = 1, seed: int
) -> Partition:
    """Deal ``n`` examples at random into parts whose sizes follow a power law.

    The largest client holds ``r ** exponent`` times as many examples as the client of
    rank ``r``, up to rounding (the largest remainders go up) and the minimum. Clients
    take the ranks in random order.

    Args:
        n: The number of examples.
        clients: The number of clients.
        exponent: How fast the sizes fall, at least 0; 0 makes them equal, 1 is Zipf's
            law.
        minimum: The smallest size that a client may have.
        seed: The seed of the order and the shuffle.

    Returns:
        One sorted index array per client.

    Raises:
        DataError: If a count is not a positive integer, exponent is not a finite
            number of at least 0, or the clients cannot have the minimum.

    Example:
        >>> parts = partition_power_law(110, 4, exponent=1.0, seed=0)
        >>> sorted(len(part) for part in parts)
        [13, 18, 26, 53]

    Source: T. Li et al., Federated Optimization in Heterogeneous Networks, 2020,
    section 5.1, where sizes follow a power law (https://arxiv.org/abs/1812.06127).
    """
    call = "partition_power_law"
    n, clients = positive(call, "n", n), positive(call, "clients", clients)
    exponent = real(call, "exponent", exponent)
    minimum = check_minimum(call, minimum, clients, n)
    rng = np.random.default_rng(natural(call, "seed", seed))
    # Through the logarithm: a large exponent then gives 0 instead of an overflow.
    shares = np.exp(-exponent * np.log(rng.permutation(clients) + 1))
    return _random_parts(rng, n, _apportion(n, shares, minimum))


def partition_lognormal(
    n: int, clients: int, *, sigma: float, minimum: int = 1, seed: int
) -> Partition:
    """Deal ``n`` examples at random into parts whose sizes are log-normal.

    Sizes are in proportion to ``exp(sigma * z)`` with standard normal ``z``, up to
    rounding (the largest remainders go up) and the minimum.

    Args:
        n: The number of examples.
        clients: The number of clients.
        sigma: The standard deviation of the logarithm of the sizes, at least 0; 0
            makes them equal.
        minimum: The smallest size that a client may have.
        seed: The seed of the sizes and the shuffle.

    Returns:
        One sorted index array per client.

    Raises:
        DataError: If a count is not a positive integer, sigma is not a finite number
            of at least 0, or the clients cannot have the minimum.

    Example:
        >>> parts = partition_lognormal(100, 4, sigma=1.0, seed=0)
        >>> sum(len(part) for part in parts)
        100

    Source: D. A. E. Acar et al., Federated Learning Based on Dynamic Regularization,
    2021, section 4, unbalanced data (https://arxiv.org/abs/2111.04263).
    """
    call = "partition_lognormal"
    n, clients = positive(call, "n", n), positive(call, "clients", clients)
    sigma = real(call, "sigma", sigma)
    minimum = check_minimum(call, minimum, clients, n)
    rng = np.random.default_rng(natural(call, "seed", seed))
    z = rng.standard_normal(clients)
    # In proportion to the largest, which cannot overflow.
    shares = np.exp(sigma * (z - z.max()))
    return _random_parts(rng, n, _apportion(n, shares, minimum))


def _random_parts(rng: np.random.Generator, n: int, sizes: np.ndarray) -> Partition:
    order = rng.permutation(n)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def _apportion(n: int, shares: np.ndarray, minimum: int) -> np.ndarray:
    """Return sizes, ``n`` in all, in proportion to ``shares``: ``[clients]``.

    Clients whose share would be below the minimum get the minimum, and the others
    share the rest in proportion.
    """
    quotas = np.full(len(shares), float(minimum))
    free = np.ones(len(shares), bool)
    while free.any():
        rest = n - minimum * np.count_nonzero(~free)
        quotas[free] = rest * shares[free] / shares[free].sum()
        low = free & (quotas < minimum)
        if not low.any():
            break
        quotas[low] = minimum
        free &= ~low
    sizes = np.floor(quotas).astype(np.int64)
    most_left_over = np.argsort(sizes - quotas, kind="stable")
    sizes[most_left_over[: n - sizes.sum()]] += 1
    return sizes
