"""One pass over the rows that a sweep reads: streamed, or arrays at hand."""

from collections.abc import Generator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fad._errors import FadError
from fad.compile._prefetch import ahead
from fad.compile._source import ClientStream
from fad.placement import CLIENTS

AT_HAND = 4096  # clients at a time where nothing is read


class Column:
    """One leaf of a ``ClientStream``, in place of an array ``[n, *s]``.

    Attributes:
        stream: The stream.
        leaf: Which leaf of its chunks.
        round: Which round's data, where every round has its own.
        aval: The type that the program sees.
    """

    def __init__(self, stream: ClientStream, leaf: int, index: int | None = None):
        self.stream, self.leaf, self.round = stream, leaf, index
        kind = stream.types_of_all()[leaf]
        shape = kind.shape if index is None else kind.shape[1:]
        self.aval = jax.ShapeDtypeStruct(shape, kind.dtype)

    def __getitem__(self, index: int) -> "Column":
        """Return a round's data."""
        if self.stream.rounds is None or self.round is not None:
            raise FadError(
                f"fad.jit: the program scans over the clients of {self.stream!r}; use "
                "fad.map, or pass the data as fad.AtClients."
            )
        return Column(self.stream, self.leaf, index)


class Reader:
    """Gives the rows of ``n`` clients, ``size`` at a time, on the device or the mesh.

    Attributes:
        size: Rows at a time, which the devices divide.
        types: The types of all rows of the arrays.

    Raises:
        FadError: If data that each round has of its own is read as one round's.
    """

    def __init__(self, arrays: Sequence[Any], n: int, mesh: Mesh | None):
        self.arrays, self.n = arrays, n
        columns = [x for x in arrays if isinstance(x, Column)]
        self.streams = {(id(x.stream), x.round): x.stream for x in columns}
        for x in columns:
            if x.stream.rounds is not None and x.round is None:
                raise FadError(
                    f"fad.jit: the program reads {x.stream!r} as the data of one "
                    "round; scan over its rounds, jax.lax.scan(body, state, data)."
                )
        sizes = [s.size for s in self.streams.values()]
        self.read = min([n, *sizes] if sizes else [n, AT_HAND])
        devices = 1 if mesh is None else mesh.shape[CLIENTS]
        self.size = -(-self.read // devices) * devices
        self.types = tuple((x.aval.shape, str(x.aval.dtype)) for x in arrays)
        self.place = mesh and NamedSharding(mesh, PartitionSpec(CLIENTS))

    def __iter__(self) -> Generator[tuple[int, list[Any], int], None, None]:
        """Read once: the first client's number, the rows, and how many count."""
        count = max((s.prefetch for s in self.streams.values()), default=1)
        return ahead(self._chunks(), count, self._put)

    def _chunks(self) -> Generator[tuple[int, dict[Any, Any], int], None, None]:
        if not self.streams:
            for start in range(0, self.n, self.read):
                yield start, {}, min(self.read, self.n - start)
            return
        passes = [s.passes(key[1], self.read) for key, s in self.streams.items()]
        start = 0
        for parts in zip(*passes, strict=True):
            rows = [leaves for leaves, _ in parts]
            yield start, dict(zip(self.streams, rows, strict=True)), parts[0][1]
            start += parts[0][1]

    def _put(self, item: tuple[int, dict[Any, Any], int]) -> tuple[int, list[Any], int]:
        start, parts, valid = item
        rows = []
        for x in self.arrays:
            if isinstance(x, Column):
                part = parts[id(x.stream), x.round][x.leaf]
            else:
                part = x[start : start + self.read]
            rows.append(jax.device_put(self._filled(part), self.place))
        return start, jax.block_until_ready(rows), valid

    def _filled(self, part: Any) -> Any:
        """Fill up with the last row; copy what the reader may write to."""
        if len(part) < self.size:
            return part[np.minimum(np.arange(self.size), len(part) - 1)]
        return part.copy() if isinstance(part, np.ndarray) else part
