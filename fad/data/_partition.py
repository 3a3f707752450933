"""Partitioners: who holds which example.

Each returns a list with one sorted index array per client, in which every example
stands exactly once. The same arguments always give the same partition.
"""

from typing import Any

import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import positive

Partition = list[np.ndarray]


def partition_iid(n: int, clients: int, *, seed: int) -> Partition:
    """Deal ``n`` examples at random into ``clients`` parts of equal size (within one).

    Args:
        n: The number of examples.
        clients: The number of clients, at most ``n``.
        seed: The seed of the shuffle.

    Returns:
        One sorted index array per client.

    Raises:
        DataError: If a count is not a positive integer, or there are more clients
            than examples.

    Example:
        >>> parts = partition_iid(5, 2, seed=0)
        >>> [len(part) for part in parts], sorted(np.concatenate(parts).tolist())
        ([3, 2], [0, 1, 2, 3, 4])
    """
    call = "partition_iid"
    n, clients = positive(call, "n", n), positive(call, "clients", clients)
    if clients > n:
        raise DataError(
            f"fad.data.{call}(clients={clients}): at most one client per example, but "
            f"there are only n={n} examples. Ask for at most {n} clients."
        )
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, clients)]


def partition_dirichlet(
    labels: np.ndarray, clients: int, *, alpha: float, seed: int
) -> Partition:
    """Split every label over the clients in shares drawn from Dirichlet(alpha).

    A small alpha gives clients of few labels and unequal sizes, some of them empty;
    a large one approaches the iid partition.

    Args:
        labels: The label of every example, ``[N]``.
        clients: The number of clients.
        alpha: The concentration, positive and finite, the same for every client.
        seed: The seed of shares and shuffles.

    Returns:
        One sorted index array per client, possibly empty.

    Raises:
        DataError: If labels is not one axis of at least one label, clients is not a
            positive integer, or alpha is not positive and finite.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> parts = partition_dirichlet(labels, 3, alpha=0.5, seed=0)
        >>> sorted(np.concatenate(parts).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]

    Source: M. Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural
    Networks, 2019, section 4 (https://arxiv.org/abs/1905.12022).
    """
    call = "partition_dirichlet"
    labels, clients = _labels(call, labels), positive(call, "clients", clients)
    if not (alpha > 0 and np.isfinite(alpha)):
        raise DataError(
            f"fad.data.{call}(alpha=...): expected a positive, finite concentration; "
            f"got {alpha!r}. For equal shares use fad.data.partition_iid."
        )
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, float(alpha)))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for part, chosen in zip(parts, np.split(rows, cuts), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def partition_shards(
    labels: np.ndarray, clients: int, *, classes_per_client: int, seed: int
) -> Partition:
    """Sort by label, cut into equal shards, deal each client ``classes_per_client``.

    A shard that reaches over the border between two labels holds both.

    Args:
        labels: The label of every example, ``[N]``.
        clients: The number of clients.
        classes_per_client: The number of shards that each client gets, at most the
            number of different labels.
        seed: The seed of the deal.

    Returns:
        One sorted index array per client; the sizes differ by at most
        ``classes_per_client``.

    Raises:
        DataError: If labels is not one axis of at least one label, a count is not a
            positive integer, there are fewer labels than classes_per_client, or more
            shards than examples.

    Example:
        >>> labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
        >>> parts = partition_shards(labels, 2, classes_per_client=2, seed=0)
        >>> [len(np.unique(labels[part])) for part in parts]
        [2, 2]

    Source: B. McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, 2017, section 3 (https://arxiv.org/abs/1602.05629).
    """
    call = "partition_shards"
    labels, clients = _labels(call, labels), positive(call, "clients", clients)
    each = positive(call, "classes_per_client", classes_per_client)
    shards, distinct = clients * each, len(np.unique(labels))
    if each > distinct:
        raise DataError(
            f"fad.data.{call}(classes_per_client={each}): the labels take only "
            f"{distinct} different values. Ask for at most {distinct}."
        )
    if shards > len(labels):
        raise DataError(
            f"fad.data.{call}(): {clients} clients with {each} shards each need "
            f"{shards} shards, but there are only {len(labels)} examples. Ask for at "
            f"most {len(labels) // each} clients."
        )
    rng = np.random.default_rng(seed)
    # Shuffled first, so that the stable sort leaves a random order within a label.
    rows = rng.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    pieces = np.array_split(rows, shards)
    deal = rng.permutation(shards).reshape(clients, each)
    return [np.sort(np.concatenate([pieces[i] for i in hand])) for hand in deal]


def _labels(call: str, labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise DataError(
            f"fad.data.{call}(labels=...): expected one label per example, [N] with N "
            f"at least 1; got {describe(labels)}."
        )
    return labels
