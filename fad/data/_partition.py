"""Partitioners: who holds which example.

Each returns a list with one sorted index array per client, in which every example
stands exactly once. The same arguments always give the same partition.
"""

import numpy as np

from fad._errors import DataError
from fad.data._checks import check_alpha, check_labels, check_minimum, natural, positive

Partition = list[np.ndarray]

_DRAWS = 1000


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
    order = np.random.default_rng(natural(call, "seed", seed)).permutation(n)
    return [np.sort(part) for part in np.array_split(order, clients)]


def partition_dirichlet(
    labels: np.ndarray, clients: int, *, alpha: float, minimum: int = 0, seed: int
) -> Partition:
    """Split every label over the clients in shares drawn from Dirichlet(alpha).

    A small alpha gives clients of few labels and unequal sizes, some of them empty;
    a large one approaches the iid partition.

    Args:
        labels: The label of every example, ``[N]`` integers or texts.
        clients: The number of clients.
        alpha: The concentration, positive and finite, the same for every client.
        minimum: The smallest size that a client may have. Partitions are drawn one
            after another, up to 1,000, until one has no smaller client; 0 takes the
            first.
        seed: The seed of shares and shuffles.

    Returns:
        One sorted index array per client, possibly empty unless ``minimum`` forbids.

    Raises:
        DataError: If labels is not one axis of at least one integer or text, clients
            is not a positive integer, alpha is not positive and finite, or the clients
            cannot have the minimum or no draw gave it to them.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> parts = partition_dirichlet(labels, 3, alpha=0.5, seed=0)
        >>> sorted(np.concatenate(parts).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]

    Source: M. Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural
    Networks, 2019, section 4 (https://arxiv.org/abs/1905.12022).
    """
    call = "partition_dirichlet"
    labels = check_labels(call, "labels", labels)
    clients = positive(call, "clients", clients)
    alpha = check_alpha(call, "alpha", alpha, clients)
    minimum = check_minimum(call, minimum, clients, len(labels))
    values, codes = np.unique(labels, return_inverse=True)
    rows, best = by_owner(codes, len(values)), 0
    rng = np.random.default_rng(natural(call, "seed", seed))
    for _ in range(_DRAWS):
        owner = _dirichlet_owners(rng, rows, clients, alpha)
        smallest = int(np.bincount(owner, minlength=clients).min())
        if smallest >= minimum:
            return by_owner(owner, clients)
        best = max(best, smallest)
    raise DataError(
        f"fad.data.{call}(minimum={minimum}): in each of {_DRAWS} draws one of the "
        f"{clients} clients got fewer (the best draw gave all of them at least "
        f"{best}). The bound minimum * clients <= N, {minimum * clients} <= "
        f"{len(labels)}, is met, but at alpha={alpha:g} such a draw is rare: ask for a "
        "smaller minimum, fewer clients or a larger alpha."
    )


def partition_shards(
    labels: np.ndarray, clients: int, *, shards_per_client: int, seed: int
) -> Partition:
    """Sort by label, cut into equal shards, deal each client ``shards_per_client``.

    A shard that reaches over the border between two labels holds both. Clients with
    an exact number of classes: ``partition_classes``.

    Args:
        labels: The label of every example, ``[N]`` integers or texts.
        clients: The number of clients.
        shards_per_client: The number of shards that each client gets.
        seed: The seed of the deal.

    Returns:
        One sorted index array per client; the sizes differ by at most
        ``shards_per_client``.

    Raises:
        DataError: If labels is not one axis of at least one integer or text, a count
            is not a positive integer, or there are more shards than examples.

    Example:
        >>> labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
        >>> parts = partition_shards(labels, 2, shards_per_client=2, seed=0)
        >>> [len(np.unique(labels[part])) for part in parts]
        [2, 2]

    Source: B. McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, 2017, section 3 (https://arxiv.org/abs/1602.05629).
    """
    call = "partition_shards"
    labels = check_labels(call, "labels", labels)
    clients = positive(call, "clients", clients)
    each = positive(call, "shards_per_client", shards_per_client)
    shards = clients * each
    if shards > len(labels):
        raise DataError(
            f"fad.data.{call}(): {clients} clients with {each} shards each need "
            f"{shards} shards, but there are only {len(labels)} examples. Ask for at "
            f"most {len(labels) // each} clients or {len(labels) // clients} shards "
            "per client."
        )
    rng = np.random.default_rng(natural(call, "seed", seed))
    # Shuffled first, so that the stable sort leaves a random order within a label.
    rows = rng.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    pieces = np.array_split(rows, shards)
    deal = rng.permutation(shards).reshape(clients, each)
    return [np.sort(np.concatenate([pieces[i] for i in hand])) for hand in deal]


def by_owner(owner: np.ndarray, clients: int) -> Partition:
    """Return each client's rows from the client of each row, ``[N]``."""
    order = np.argsort(owner, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(owner, minlength=clients))[:-1]
    return np.split(order, ends)


def _dirichlet_owners(
    rng: np.random.Generator, rows: Partition, clients: int, alpha: float
) -> np.ndarray:
    """Draw the client of every example, label by label: ``[N]``."""
    owner = np.empty(sum(map(len, rows)), np.int64)
    for chosen in rows:
        shuffled = rng.permutation(chosen)
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(chosen)).astype(np.int64)
        counts = np.diff(cuts, prepend=0, append=len(chosen))
        owner[shuffled] = np.repeat(np.arange(clients), counts)
    return owner
