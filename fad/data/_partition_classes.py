"""Clients with an exact number of classes."""

import numpy as np

from fad._errors import DataError
from fad.data._checks import check_labels, natural, positive
from fad.data._partition import Partition, by_owner


def partition_classes(
    labels: np.ndarray, clients: int, *, classes_per_client: int, seed: int
) -> Partition:
    """Give every client examples of exactly ``classes_per_client`` classes.

    Each class is cut into ``clients * classes_per_client / classes`` shards, as equal
    as can be. Where that is no whole number, some classes, the largest first, are cut
    into one more. Which clients hold which classes is drawn at random.

    Args:
        labels: The class of every example, ``[N]`` integers or texts.
        clients: The number of clients.
        classes_per_client: The number of different classes at each client.
        seed: The seed of the deal.

    Returns:
        One sorted index array per client.

    Raises:
        DataError: If labels is not one axis of at least one integer or text, a count
            is not a positive integer, there are fewer classes than a client is to
            hold, fewer shards than classes, or a class with fewer examples than
            shards.

    Example:
        >>> labels = np.array([0, 1, 2, 0, 1, 2])
        >>> parts = partition_classes(labels, 3, classes_per_client=2, seed=0)
        >>> [len(np.unique(labels[part])) for part in parts]
        [2, 2, 2]

    Source: E. Diao et al., HeteroFL, 2021, section 4 (https://arxiv.org/abs/2010.01264),
    and S. Alam et al., FedRolex, 2022, section 4 (https://arxiv.org/abs/2212.01548).
    """
    call = "partition_classes"
    labels = check_labels(call, "labels", labels)
    clients = positive(call, "clients", clients)
    each = positive(call, "classes_per_client", classes_per_client)
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    _check_deal(call, clients, each, len(classes))
    rng = np.random.default_rng(natural(call, "seed", seed))
    shards = np.full(len(classes), clients * each // len(classes))
    order = rng.permutation(len(classes))
    order = order[np.argsort(-counts[order], kind="stable")]
    shards[order[: clients * each % len(classes)]] += 1
    if (short := np.flatnonzero(counts < shards)).size:
        i = short[0]
        raise DataError(
            f"fad.data.{call}(): {clients} clients with {each} classes each cut the "
            f"class {classes[i]} into {shards[i]} shards, but it has only {counts[i]} "
            f"examples. Ask for at most {counts.min() * len(classes) // each} clients."
        )
    held = _deal(rng, shards, clients, each)
    owner = np.empty(len(labels), np.int64)
    for label, rows in enumerate(by_owner(codes, len(classes))):
        holders = rng.permutation(np.flatnonzero(held[:, label]))
        pieces = np.array_split(rng.permutation(rows), shards[label])
        owner[np.concatenate(pieces)] = np.repeat(holders, [*map(len, pieces)])
    return by_owner(owner, clients)


def _check_deal(call: str, clients: int, each: int, classes: int) -> None:
    if each > classes:
        raise DataError(
            f"fad.data.{call}(classes_per_client={each}): the labels take only "
            f"{classes} different values. Ask for at most {classes}."
        )
    if clients * each < classes:
        raise DataError(
            f"fad.data.{call}(classes_per_client={each}): {clients} clients with "
            f"{each} classes each take {clients * each} of the {classes} classes, and "
            f"the examples of the others would be lost. Ask for at least "
            f"{-(-classes // clients)} classes per client."
        )


def _deal(
    rng: np.random.Generator, shards: np.ndarray, clients: int, each: int
) -> np.ndarray:
    """Deal each class to as many clients as it has shards: ``bool [clients, classes]``.

    Client by client, classes with more shards left are the likelier. A class that has
    as many left as there are clients left must be dealt to each of them: so no class
    ever has more, and every client finds ``each`` different ones.
    """
    held, left = np.zeros((clients, len(shards)), bool), shards.copy()
    for client in range(clients):
        # The smallest of exponential waiting times: a draw in proportion to the rates.
        waits = rng.exponential(size=len(shards)) / np.maximum(left, 1)
        waits[left == 0] = np.inf
        waits[left == clients - client] = -1
        chosen = np.argsort(waits, kind="stable")[:each]
        held[client, chosen] = True
        left[chosen] -= 1
    return rng.permutation(held)
