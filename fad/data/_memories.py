"""What the clients of a federation keep from one of their rounds to the next."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import DataError, describe, path_str

_CALL = "fad.data.ClientMemories"


class ClientMemories:
    """The memories of all clients, in the main memory of the machine.

    A client that has not taken part yet has the first memory, which is held once: what
    is held grows with the clients that were seen, not with those there are.

    Attributes:
        num_clients: The clients of the federation.

    Example:
        >>> memories = ClientMemories({"c": np.zeros(2, np.float32)}, num_clients=1000)
        >>> memories.write(np.array([7]), {"c": np.ones((1, 2), np.float32)})
        >>> memories.read(np.array([3, 7]))["c"].tolist()
        [[0.0, 0.0], [1.0, 1.0]]
        >>> memories.nbytes
        16
    """

    def __init__(self, first: Any, *, num_clients: int) -> None:
        """Start with the memory of one client, the same for all.

        Args:
            first: A pytree of arrays ``[*s]``.
            num_clients: The clients of the federation.

        Raises:
            DataError: If a leaf is no array of numbers.
        """
        found, self._treedef = jax.tree_util.tree_flatten_with_path(first)
        self._paths = [path_str("memory", path) for path, _ in found]
        for path, (_, x) in zip(self._paths, found, strict=True):
            if not _is_numbers(x):
                raise DataError(
                    f"{_CALL}: {path} is {describe(x)}; expected arrays of numbers. "
                    "Keep jax.random.key_data of a key."
                )
        self._first = [np.asarray(x) for _, x in found]
        self.num_clients = num_clients
        self._place = np.full(num_clients, -1, np.int32)  # -1: not seen yet
        self._clients = np.zeros(0, np.int32)  # in the order in which they were seen
        self._rows = [np.zeros((0, *x.shape), x.dtype) for x in self._first]

    @property
    def nbytes(self) -> int:
        """The bytes held: of the first memory, and of each client that was seen."""
        each = sum(x.nbytes for x in self._first)
        return each * (1 + len(self._clients))

    def read(self, clients: np.ndarray) -> Any:
        """Return the memories of some clients: ``[c] -> [c, *s]``.

        Args:
            clients: Their numbers; -1 for a place that stayed empty.

        Returns:
            A pytree of arrays, one row per client.

        Raises:
            DataError: If there is no such client.
        """
        self._check(clients)
        place = np.where(clients < 0, -1, self._place[clients])
        out = []
        for first, rows in zip(self._first, self._rows, strict=True):
            own = np.broadcast_to(first, (len(clients), *first.shape)).copy()
            own[place >= 0] = rows[place[place >= 0]]
            out.append(own)
        return self._treedef.unflatten(out)

    def write(self, clients: np.ndarray, memories: Any) -> None:
        """Keep the new memories of some clients: ``[c], [c, *s]``.

        Args:
            clients: Their numbers, each once; what stands beside -1 is thrown away.
            memories: As ``read`` gives them.

        Raises:
            DataError: If a client stands twice, or the rows are of another type.
        """
        self._check(clients)
        there = np.flatnonzero(clients >= 0)
        new = clients[there]
        if len(set(new.tolist())) < len(new):
            twice = np.flatnonzero(np.bincount(new) > 1).tolist()
            raise DataError(
                f"{_CALL}.write: the clients {twice} stand in the cohort more than "
                "once, and a client has one memory. Sample without replacement."
            )
        rows = [np.asarray(x) for x in self._treedef.flatten_up_to(memories)]
        for path, x, first in zip(self._paths, rows, self._first, strict=True):
            wanted = (len(clients), *first.shape)
            if (x.shape, x.dtype) != (wanted, first.dtype):
                raise DataError(
                    f"{_CALL}.write: {path} is {describe(x)}; expected {first.dtype}"
                    f"{list(wanted)}. A step must keep shapes and types of a memory."
                )
        self._make_room(new[self._place[new] < 0])
        for own, x in zip(self._rows, rows, strict=True):
            own[self._place[new]] = x[there]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs: ``{"clients": [k], "rows": [k, *s]}``."""
        count = len(self._clients)
        rows = [x[:count] for x in self._rows]
        return {"clients": self._clients, "rows": self._treedef.unflatten(rows)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave.

        Args:
            state: As ``state`` gives it.

        Raises:
            DataError: If there is no such client.
        """
        clients = np.asarray(state["clients"], np.int32)
        self._check(clients)
        self._place[:] = -1
        self._place[clients] = np.arange(len(clients))
        self._clients = clients
        rows = self._treedef.flatten_up_to(state["rows"])
        # No numbers at all are not stored, so they come without their rows.
        self._rows = [
            np.array(x).reshape(len(clients), *first.shape)
            for x, first in zip(rows, self._first, strict=True)
        ]

    def _make_room(self, clients: np.ndarray) -> None:
        start = len(self._clients)
        self._place[clients] = np.arange(start, start + len(clients))
        self._clients = np.append(self._clients, clients.astype(np.int32))
        room = len(self._rows[0]) if self._rows else 0
        if len(self._clients) > room:
            size = min(max(len(self._clients), 2 * room), self.num_clients)
            for i, x in enumerate(self._rows):
                self._rows[i] = np.empty((size, *x.shape[1:]), x.dtype)
                self._rows[i][: len(x)] = x

    def _check(self, clients: np.ndarray) -> None:
        wrong = clients[(clients < -1) | (clients >= self.num_clients)]
        if wrong.size:
            raise DataError(
                f"{_CALL}: there is no client {int(wrong[0])}; expected numbers from 0 "
                f"to {self.num_clients - 1}, or -1 for an empty place."
            )


def _is_numbers(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended)
