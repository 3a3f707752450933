"""Rows of many clients, held compactly: flat arrays and where each client starts."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import (
    arrays,
    check_clients,
    check_indices,
    check_names,
    check_offsets,
    num_rows,
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ragged:
    """What ``Federated`` holds, and how to get at it; see there for the fields."""

    examples: dict[str, np.ndarray]
    offsets: np.ndarray
    _: dataclasses.KW_ONLY
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Turn the fields into numpy arrays, which copies none, and check them."""
        examples = arrays("Federated", "examples", self.examples)
        rows = num_rows("Federated", "examples", examples)
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "offsets", check_offsets(self.offsets, rows))
        object.__setattr__(self, "names", check_names(self.names, self.num_clients))

    @classmethod
    def from_indices(
        cls,
        examples: Mapping[str, Any],
        indices: Sequence[np.ndarray],
        *,
        names: Sequence[str] | None = None,
    ) -> Self:
        """Gather each client's rows: the partitioners' lists become clients.

        Args:
            examples: Named arrays ``[N, *]`` that share N.
            indices: One array of row numbers in 0..N-1 per client. A row that no
                client names is left out; one that two clients name is held by both.
            names: The clients' names; None where they have none.

        Returns:
            The clients, in the order of ``indices``.

        Raises:
            DataError: If lengths differ, an array is masked, an index is not a row
                number, or names are not one text per client.

        Example:
            >>> from fad.data import Federated
            >>> parts = [np.array([2, 0]), np.array([1])]
            >>> data = Federated.from_indices({"x": np.array([10, 11, 12])}, parts)
            >>> data.client(0)["x"].tolist()
            [12, 10]
        """
        whole = arrays("Federated.from_indices", "examples", examples)
        rows = num_rows("Federated.from_indices", "examples", whole)
        parts = [check_indices(i, part, rows) for i, part in enumerate(indices)]
        order = np.concatenate([np.zeros(0, np.int64), *parts])
        offsets = np.cumsum([0, *map(len, parts)])
        gathered = {name: x[order] for name, x in whole.items()}
        return cls(gathered, offsets, names=check_names(names, len(parts)))

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
            >>> from fad.data import Federated
            >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
            >>> data.client(0)
            {'x': array([0, 1])}
        """
        try:
            number = operator.index(i)
        except TypeError:
            number = -1
        # True is 1 to Python, but whoever passes it means something else.
        if isinstance(i, bool) or number not in range(self.num_clients):
            raise DataError(
                f"fad.data.Federated.client(i={i!r}): expected a client in "
                f"0..{self.num_clients - 1}."
            )
        start, stop = self.offsets[number], self.offsets[number + 1]
        return {name: x[start:stop] for name, x in self.examples.items()}

    def take(self, clients: Sequence[int] | np.ndarray) -> Self:
        """Return some of the clients, in the order given; their rows are copied.

        Args:
            clients: Their numbers, each at most once.

        Returns:
            The clients, who keep their names.

        Raises:
            DataError: If one is not there or stands twice, or they hold no example.

        Example:
            >>> from fad.data import Federated
            >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
            >>> data.take([1]).examples["x"].tolist()
            [2, 3, 4]
        """
        chosen = check_clients("Federated.take", clients, self.sizes)
        rows = _rows_of(self.offsets, chosen)
        names = None if self.names is None else tuple(self.names[i] for i in chosen)
        offsets = np.concatenate([[0], np.cumsum(self.sizes[chosen])])
        examples = {name: x[rows] for name, x in self.examples.items()}
        return type(self)(examples, offsets, names=names)

    def pooled(self) -> dict[str, np.ndarray]:
        """Return all clients' examples together: arrays ``[N, *]``, not copied.

        Returns:
            The arrays by name, a test set for the server for one.

        Example:
            >>> from fad.data import Federated
            >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
            >>> data.pooled()["x"].tolist()
            [0, 1, 2, 3, 4]
        """
        return dict(self.examples)

    def __repr__(self) -> str:
        """Name the arrays instead of printing them."""
        held = ", ".join(f"{k}: {describe(x)}" for k, x in self.examples.items())
        return f"Federated({{{held}}}, num_clients={self.num_clients})"


def _rows_of(offsets: np.ndarray, clients: np.ndarray) -> np.ndarray:
    """Return the rows of clients, one client after the other."""
    sizes = np.diff(offsets)[clients]
    starts = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(offsets[clients] - starts, sizes)
