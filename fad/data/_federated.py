"""Ragged clients, held compactly, and the cohorts sampled from them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import (
    check_indices,
    check_offsets,
    num_rows,
    positive,
    seed_words,
)
from fad.local._batches import Batches
from fad.placement import AtClients

# Separate random streams of one key. The values never change: cohorts depend on them.
_SAMPLE, _SHUFFLE = 0, 1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Federated:
    """Examples of many clients of any sizes: ``[N, *]`` arrays sorted by client.

    Client ``i`` holds the rows from ``offsets[i]`` up to ``offsets[i + 1]``.

    Args:
        examples: Named arrays ``[N, *]`` that share N.
        offsets: Where each client starts, ``[num_clients + 1]`` integers, rising
            (equal neighbours make an empty client) from 0 to N.

    Raises:
        DataError: If there are no examples, lengths differ, or offsets do not fit.

    Example:
        >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
        >>> data.num_clients, data.sizes.tolist(), data.client(1)["x"].tolist()
        (2, [2, 3], [2, 3, 4])
    """

    examples: dict[str, np.ndarray]
    offsets: np.ndarray

    def __post_init__(self) -> None:
        """Turn the fields into numpy arrays and check them."""
        examples = {name: np.asarray(x) for name, x in self.examples.items()}
        rows = num_rows("Federated", "examples", examples)
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "offsets", check_offsets(self.offsets, rows))

    @classmethod
    def from_indices(
        cls, examples: Mapping[str, Any], indices: Sequence[np.ndarray]
    ) -> "Federated":
        """Gather each client's rows: the partitioners' lists become clients.

        Args:
            examples: Named arrays ``[N, *]`` that share N.
            indices: One array of row numbers in 0..N-1 per client. A row that no
                client names is left out; one that two clients name is held by both.

        Returns:
            The clients, in the order of ``indices``.

        Raises:
            DataError: If lengths differ or an index is not a row number.

        Example:
            >>> parts = [np.array([2, 0]), np.array([1])]
            >>> data = Federated.from_indices({"x": np.array([10, 11, 12])}, parts)
            >>> data.client(0)["x"].tolist()
            [12, 10]
        """
        arrays = {name: np.asarray(x) for name, x in examples.items()}
        rows = num_rows("Federated.from_indices", "examples", arrays)
        parts = [check_indices(i, part, rows) for i, part in enumerate(indices)]
        order = np.concatenate([np.zeros(0, np.int64), *parts])
        offsets = np.cumsum([0, *map(len, parts)])
        return cls({name: x[order] for name, x in arrays.items()}, offsets)

    @property
    def num_clients(self) -> int:
        """The number of clients, empty ones included."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """The number of examples of every client, ``[num_clients]``."""
        return np.diff(self.offsets)

    def client(self, i: int) -> dict[str, np.ndarray]:
        """Return the examples of one client: ``[sizes[i], *]`` views.

        Args:
            i: The client, in 0..num_clients-1.

        Returns:
            The client's arrays by name.

        Raises:
            DataError: If there is no such client.

        Example:
            >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
            >>> data.client(0)
            {'x': array([0, 1])}
        """
        if i not in range(self.num_clients):
            raise DataError(
                f"fad.data.Federated.client(i={i!r}): expected a client in "
                f"0..{self.num_clients - 1}."
            )
        start, stop = self.offsets[i], self.offsets[i + 1]
        return {name: x[start:stop] for name, x in self.examples.items()}

    def cohort(
        self, key: jax.Array, size: int, *, batch_size: int, epochs: int = 1
    ) -> AtClients[Batches]:
        """Sample clients without replacement and lay out their shuffled batches.

        ``examples: [size, steps, batch_size, *]`` with ``steps = epochs * ceil(max size
        of any client / batch_size)``, the same for every cohort, so that nothing
        recompiles. Short clients are filled up with zero rows whose ``mask`` is False.
        The order of a client's examples depends on the key and the client alone.

        Args:
            key: A JAX random key, typed or raw; the same key gives the same cohort.
            size: The number of clients; ``num_clients`` takes all. Clients come in
                rising order.
            batch_size: The number of examples in a batch.
            epochs: How often each client goes through its examples, each time in a
                new order.

        Returns:
            The cohort, ``AtClients(Batches(examples, mask, client))``.

        Raises:
            DataError: If the key is not one concrete key, a number is not a positive
                integer, or size exceeds the number of clients.

        Example:
            >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
            >>> cohort = data.cohort(jax.random.key(0), 2, batch_size=2)
            >>> cohort.unsafe_gather().mask.astype(int).tolist()
            [[[1, 1], [0, 0]], [[1, 1], [1, 0]]]
        """
        call = "Federated.cohort"
        size = positive(call, "size", size)
        batch_size = positive(call, "batch_size", batch_size)
        epochs = positive(call, "epochs", epochs)
        if size > self.num_clients:
            raise DataError(
                f"fad.data.Federated.cohort(size={size}): clients are sampled without "
                f"replacement and there are only {self.num_clients}. Ask for fewer."
            )
        seed = seed_words(key)
        rng = np.random.default_rng([*seed, _SAMPLE])
        clients = np.sort(rng.choice(self.num_clients, size, replace=False))
        return AtClients(self._batches(seed, clients, batch_size, epochs))

    def describe(self) -> str:
        """Return a short text on the clients, their sizes and their labels.

        The label entropy, in bits, is the mean over the non-empty clients beside that
        of all examples together: the further below, the more heterogeneous. It is
        given when there are integer labels ``y: [N]``.

        Returns:
            One line, or two with labels.

        Example:
            >>> y = np.array([0, 0, 1, 1])
            >>> print(Federated({"y": y}, np.array([0, 2, 4])).describe())
            2 clients, 4 examples; sizes min 2, median 2, max 2
            label entropy 0.00 bits within clients, 1.00 overall
        """
        sizes = self.sizes
        text = (
            f"{self.num_clients} clients, {sizes.sum()} examples; sizes min "
            f"{sizes.min()}, median {np.median(sizes):g}, max {sizes.max()}"
        )
        y = self.examples.get("y")
        if y is None or y.ndim != 1 or y.dtype.kind not in "iub":
            return text
        labels, codes = np.unique(y, return_inverse=True)
        cells = np.repeat(np.arange(self.num_clients), sizes) * len(labels) + codes
        counts = np.bincount(cells, minlength=self.num_clients * len(labels))
        counts = counts.reshape(self.num_clients, len(labels))
        within = _entropy(counts[sizes > 0]).mean()
        overall = _entropy(counts.sum(axis=0))
        return (
            f"{text}\nlabel entropy {within:.2f} bits within clients, "
            f"{overall:.2f} overall"
        )

    def __repr__(self) -> str:
        """Name the arrays instead of printing them."""
        arrays = ", ".join(f"{k}: {describe(x)}" for k, x in self.examples.items())
        return f"Federated({{{arrays}}}, num_clients={self.num_clients})"

    def _batches(
        self, seed: list[int], clients: np.ndarray, batch_size: int, epochs: int
    ) -> Batches:
        sizes = self.sizes
        per_epoch = -(-int(sizes.max()) // batch_size)
        filled = np.arange(per_epoch * batch_size) < sizes[clients, None]
        shape = (len(clients), epochs * per_epoch, batch_size)
        mask = np.repeat(filled[:, None], epochs, axis=1).reshape(shape)
        # Row-major over (client, epoch, position): the order in which mask is filled.
        rows = np.concatenate([self._shuffled(seed, c, epochs) for c in clients])
        examples = {}
        for name, x in self.examples.items():
            examples[name] = np.zeros(shape + x.shape[1:], x.dtype)
            examples[name][mask] = x[rows]
        return Batches(examples, mask, clients.astype(np.int32))

    def _shuffled(self, seed: list[int], client: int, epochs: int) -> np.ndarray:
        """Return the client's rows in a new order per epoch: ``[epochs * size]``."""
        rng = np.random.default_rng([*seed, _SHUFFLE, client])
        rows = np.arange(self.offsets[client], self.offsets[client + 1])
        return rng.permuted(np.tile(rows, (epochs, 1)), axis=1).reshape(-1)


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy in bits over the last axis: ``[*, labels] -> [*]``."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return (shares * np.log2(1 / np.where(shares > 0, shares, 1))).sum(axis=-1)
