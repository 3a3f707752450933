"""Clients that differ in coarse labels and, within each, in fine ones."""

import numpy as np

from fad._errors import DataError
from fad.data._checks import check_alpha, check_labels, natural, positive
from fad.data._partition import Partition, by_owner


def partition_hierarchical(
    coarse: np.ndarray,
    fine: np.ndarray,
    clients: int,
    *,
    alpha_coarse: float,
    alpha_fine: float,
    seed: int,
) -> Partition:
    """Draw clients of equal size through a tree of labels (Pachinko allocation).

    Each client draws shares of the coarse labels from Dirichlet(alpha_coarse), and for
    each coarse label shares of its fine ones from Dirichlet(alpha_fine). Then it draws
    its examples without replacement; a label that is used up leaves the tree, and the
    shares of the others are scaled to 1. The clients draw one after another, so that
    the last ones take what is left and their shares mean less.

    Args:
        coarse: The coarse label of every example, ``[N]`` integers or texts.
        fine: The fine label of every example, ``[N]`` integers or texts; each stands
            under one coarse label.
        clients: The number of clients, at most N.
        alpha_coarse: The concentration over coarse labels, positive and finite.
        alpha_fine: The concentration over the fine labels of a coarse one, positive
            and finite.
        seed: The seed of shares and draws.

    Returns:
        One sorted index array per client; their sizes differ by at most 1.

    Raises:
        DataError: If the labels are not two axes of the same number of integers or
            texts, a fine label stands under two coarse ones, clients is not an
            integer in 1..N, or a concentration is not positive and finite.

    Example:
        >>> fine = np.array([0, 1, 2, 3] * 6)
        >>> parts = partition_hierarchical(
        ...     fine // 2, fine, 4, alpha_coarse=0.1, alpha_fine=10.0, seed=0
        ... )
        >>> [len(part) for part in parts]
        [6, 6, 6, 6]

    Source: S. Reddi et al., Adaptive Federated Optimization, 2021, appendix on
    CIFAR-100 (https://arxiv.org/abs/2003.00295), with 500 clients, 0.1 and 10.
    """
    call = "partition_hierarchical"
    coarse = check_labels(call, "coarse", coarse)
    fine = check_labels(call, "fine", fine)
    clients = positive(call, "clients", clients)
    if clients > len(fine):
        raise DataError(
            f"fad.data.{call}(clients={clients}): at most one client per example, but "
            f"there are only {len(fine)} examples. Ask for at most {len(fine)} clients."
        )
    children, codes = _tree(call, coarse, fine)
    alpha_coarse = check_alpha(call, "alpha_coarse", alpha_coarse, len(children))
    alpha_fine = check_alpha(call, "alpha_fine", alpha_fine, max(map(len, children)))
    rng = np.random.default_rng(natural(call, "seed", seed))
    left = np.bincount(codes)
    counts = np.zeros((clients, len(left)), np.int64)
    for client in range(clients):
        size = len(fine) // clients + (client < len(fine) % clients)
        totals = np.array([left[under].sum() for under in children])
        shares = rng.dirichlet(np.full(len(children), alpha_coarse))
        drawn = _draw(rng, size, shares, totals)
        for under, n in zip(children, drawn, strict=True):
            # Drawn for every coarse label, so that later draws do not depend on n.
            shares = rng.dirichlet(np.full(len(under), alpha_fine))
            counts[client, under] = _draw(rng, n, shares, left[under])
        left -= counts[client]
    owner = np.empty(len(fine), np.int64)
    for label, rows in enumerate(by_owner(codes, len(left))):
        owner[rng.permutation(rows)] = np.repeat(np.arange(clients), counts[:, label])
    return by_owner(owner, clients)


def _tree(
    call: str, coarse: np.ndarray, fine: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the fine labels' numbers under each coarse one, and those of examples."""
    if len(coarse) != len(fine):
        raise DataError(
            f"fad.data.{call}(fine=...): expected as many labels as coarse has, "
            f"{len(coarse)}; got {len(fine)}."
        )
    above, parents = np.unique(coarse, return_inverse=True)
    values, first, codes = np.unique(fine, return_index=True, return_inverse=True)
    parent = parents[first]
    if (strays := np.flatnonzero(parent[codes] != parents)).size:
        i = strays[0]
        one, two = above[parent[codes[i]]], above[parents[i]]
        raise DataError(
            f"fad.data.{call}(fine=...): expected each fine label under one coarse "
            f"label, but {values[codes[i]]} stands under {one} and {two}. Give the two "
            "fine labels different values."
        )
    return by_owner(parent, len(above)), codes


def _draw(
    rng: np.random.Generator, n: int, shares: np.ndarray, left: np.ndarray
) -> np.ndarray:
    """Count ``n`` draws by ``shares`` where no label gives more than it has left.

    What is drawn beyond that is drawn again from the other labels, which has the same
    law as leaving a label out as soon as it is used up.
    """
    counts = np.zeros(len(left), np.int64)
    while (missing := n - counts.sum()) > 0:
        rest = left - counts
        scaled = np.where(rest > 0, shares, 0.0)
        if not scaled.sum() > 0:
            # Shares so small that they are 0 in floating point.
            scaled = rest.astype(float)
        counts += np.minimum(rng.multinomial(missing, scaled / scaled.sum()), rest)
    return counts
