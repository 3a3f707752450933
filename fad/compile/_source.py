"""Client data that is read chunk by chunk, and never held as a whole."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import DataError, FadError, describe, path_str
from fad.placement import AtClients, is_at_clients

Leaves = list[np.ndarray | jax.Array]


class ClientStream:
    """Client data from an iterator; pass it to a ``fad.jit``-compiled program.

    Attributes:
        clients: The number of clients.
        rounds: The number of rounds with data of their own, or None.
        prefetch: Chunks read ahead.
        size: Clients in the first chunk; they are read that many at a time.
        tree: The structure of a chunk.
    """

    def __init__(
        self,
        read: Callable[..., Iterable],
        clients: int | None,
        rounds: int | None,
        prefetch: int,
    ):
        self._read, self.rounds, self.prefetch = read, rounds, prefetch
        self.tree, self._kinds = None, []
        first = next(self._chunks(0), None)
        if first is None:
            raise DataError(
                "fad.stream(chunks): the first pass gave no client; expected at least "
                "one."
            )
        self.size = len(first[0])
        self.clients = clients or sum(len(rows[0]) for rows in self._chunks(0))

    def __repr__(self) -> str:
        """Return the sizes."""
        rounds = f", rounds={self.rounds}" if self.rounds is not None else ""
        return f"<fad.stream of {self.clients} clients, {self.size} at a time{rounds}>"

    @property
    def types(self) -> list[jax.ShapeDtypeStruct]:
        """The types of one client's leaves, ``[*s]``, as JAX holds them."""
        return [jax.ShapeDtypeStruct(s, _as_in_jax(dtype)) for s, dtype in self._kinds]

    def types_of_all(self) -> list[jax.ShapeDtypeStruct]:
        """Return the types that a program sees, ``[n, *s]`` or ``[rounds, n, *s]``."""
        lead = (self.clients,) if self.rounds is None else (self.rounds, self.clients)
        return [jax.ShapeDtypeStruct((*lead, *t.shape), t.dtype) for t in self.types]

    def passes(self, index: int | None, size: int) -> Iterator[tuple[Leaves, int]]:
        """Read all clients once.

        Args:
            index: The round, where every round has data of its own.
            size: Clients at a time.

        Yields:
            The leaves of ``size`` clients, fewer at the end, and how many they are.

        Raises:
            DataError: If the pass has another number of clients than the first.
        """
        seen = 0
        for rows in regroup(self._chunks(index or 0), size):
            seen += len(rows[0])
            if seen > self.clients:
                break
            yield rows, len(rows[0])
        if seen != self.clients:
            at = "" if index is None else f" of round {index}"
            came = f"more than {self.clients}" if seen > self.clients else seen
            raise DataError(
                f"fad.stream(chunks): a pass over the client data{at} gave {came} "
                f"clients, but the program runs over {self.clients}. Every pass must "
                "give the same clients in the same order: the backward round reads "
                "again what the forward round read."
            )

    def _chunks(self, index: int) -> Iterator[Leaves]:
        chunks = self._read(*(() if self.rounds is None else (index,)))
        if not isinstance(chunks, Iterable):
            raise FadError(
                f"fad.stream(chunks): chunks(...) gave {describe(chunks)}; expected an "
                "iterator over chunks of clients."
            )
        for i, chunk in enumerate(chunks):
            rows = self._checked(f"chunks[{i}]", _unwrapped(chunk))
            if len(rows[0]):
                yield rows

    def _checked(self, where: str, chunk: Any) -> Leaves:
        named, tree = jax.tree_util.tree_flatten_with_path(chunk)
        arrays = [(path_str(where, path), x) for path, x in named]
        _check_arrays(where, arrays)
        rows = [x if isinstance(x, jax.Array) else np.asarray(x) for _, x in arrays]
        kinds = [(x.shape[1:], x.dtype) for x in rows]
        if self.tree is None:
            self.tree, self._kinds = tree, kinds
        if tree != self.tree or kinds != self._kinds:
            parts = [jax.ShapeDtypeStruct(*kind) for kind in self._kinds]
            first = jax.tree.map(describe, jax.tree.unflatten(self.tree, parts))
            came = ", ".join(f"{path}: {describe(x)}" for path, x in arrays)
            raise DataError(
                f"fad.stream(chunks): {where} differs from the first chunk: {came}; "
                f"one client of the first is {first}. Chunks may differ in their "
                "number of clients alone; pad ragged clients and mask them."
            )
        return rows


def _refuse(stream: Any) -> Any:
    raise FadError(
        f"{stream!r} was given to something else than a function compiled by fad.jit. "
        "The data is read from the host, between compiled chunks: there is no single "
        "XLA program to call, trace, lower or differentiate from outside. Call "
        "fad.jit(f)(stream), and take derivatives inside: fad.jit(jax.grad(f))(stream)."
    )


# A node, so that every function of JAX that meets one opens it.
jax.tree_util.register_pytree_node(
    ClientStream, _refuse, lambda _, leaves: _refuse(leaves)
)


def _as_in_jax(dtype: Any) -> Any:
    extended = jnp.issubdtype(dtype, jax.dtypes.extended)
    return dtype if extended else jax.dtypes.canonicalize_dtype(dtype)


def _unwrapped(chunk: Any) -> Any:
    return jax.tree.map(
        lambda x: x.unsafe_gather() if is_at_clients(x) else x,
        chunk,
        is_leaf=is_at_clients,
    )


def _check_arrays(where: str, arrays: Sequence[tuple[str, Any]]) -> None:
    for path, x in arrays:
        if not getattr(x, "shape", ()) or not _is_numeric(getattr(x, "dtype", None)):
            raise DataError(
                f"fad.stream(chunks): {path} is {describe(x)}; expected an array of "
                "numbers with a leading axis of clients, [c, *s]."
            )
    if not arrays or len({x.shape[0] for _, x in arrays}) > 1:
        listing = ", ".join(f"{path}: {describe(x)}" for path, x in arrays)
        raise DataError(
            f"fad.stream(chunks): the arrays of {where} have different numbers of "
            f"clients: {listing or 'no array'}. Give every leaf the same leading axis."
        )


def _is_numeric(dtype: Any) -> bool:
    kinds = (np.number, np.bool_, jax.dtypes.extended)
    return dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in kinds)


def regroup(chunks: Iterable[Leaves], size: int) -> Iterator[Leaves]:
    """Cut and join chunks to ``size`` rows each; the last has what is left.

    What waits for the next chunk is copied: a reader may fill its arrays anew.
    """
    held: list[Leaves] = []
    count = 0
    for rows in chunks:
        start, end = 0, len(rows[0])
        while start < end:
            take = min(size - count, end - start)
            held.append([x[start : start + take] for x in rows])
            start, count = start + take, count + take
            if count == size:
                yield _joined(held)
                held, count = [], 0
        if held:
            held[-1] = [x.copy() for x in held[-1]]
    if held:
        yield _joined(held)


def _joined(pieces: Sequence[Leaves]) -> Leaves:
    return [_join(parts) for parts in zip(*pieces, strict=True)]


def _join(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    on_device = any(isinstance(x, jax.Array) for x in parts)
    return jnp.concatenate(parts) if on_device else np.concatenate(parts)


def stream(
    chunks: Callable[..., Iterable] | Iterable,
    *,
    clients: int | None = None,
    rounds: int | None = None,
    prefetch: int = 2,
) -> ClientStream:
    """Give a compiled program client data that is read and not held.

    The result stands for ``fad.AtClients`` as an argument, or in one, of a function
    compiled by ``fad.jit``. Each sweep over the clients is one pass over the data, with
    the next chunks read while the last one is computed on; a backward round reads the
    data again, in the same order. Memory holds a few chunks, whatever the number of
    clients. Chunks are cut and joined to the size of the first one.

    Args:
        chunks: A function that gives an iterator over chunks of clients, the same ones
            at each call; or something that can be iterated over again (a list, a
            ``tf.data`` set as numpy). A chunk is a pytree of arrays ``[c, *s]``, or
            ``fad.AtClients`` of one. With ``rounds``, a function of the round. It runs
            in a thread of its own.
        clients: Their number; None counts them in a first pass.
        rounds: Where every round has data of its own: the program sees leaves
            ``[rounds, n, *s]`` and scans over them.
        prefetch: Chunks to read ahead, at least 1.

    Returns:
        A ``ClientStream``.

    Raises:
        DataError: If a chunk is no pytree of such arrays, or there is none; when the
            program runs, if chunks change their types or a pass its number of clients.
        FadError: If ``chunks`` can be read only once, or a number is out of range.

    Example:
        >>> import numpy as np, fad
        >>> @fad.program
        ... def mean(data):
        ...     return fad.mean(data)
        >>> def chunks():
        ...     for start in range(0, 10_000, 1000):
        ...         yield np.arange(start, start + 1000, dtype=np.float32)
        >>> float(fad.jit(mean)(fad.stream(chunks)))
        4999.5
    """
    if clients is not None:
        clients = _at_least_one("clients", clients)
    if rounds is not None:
        rounds = _at_least_one("rounds", rounds)
    prefetch = _at_least_one("prefetch", prefetch)
    if callable(chunks):
        return ClientStream(chunks, clients, rounds, prefetch)
    if isinstance(chunks, AtClients | jax.Array | np.ndarray | dict):
        raise FadError(
            f"fad.stream(chunks): {describe(chunks)} is data at hand, no sequence of "
            "chunks. Pass it as fad.AtClients, or [data] for one chunk."
        )
    if isinstance(chunks, Iterator) or not isinstance(chunks, Iterable):
        raise FadError(
            f"fad.stream(chunks): {describe(chunks)} can be read only once, if at all; "
            "a gradient reads the data again. Pass a function that makes the iterator."
        )
    if rounds is not None:
        raise FadError(
            "fad.stream(chunks, rounds=...): expected chunks to be a function of the "
            f"round that gives its iterator, got {describe(chunks)}."
        )
    return ClientStream(lambda: chunks, clients, rounds, prefetch)


def _at_least_one(name: str, value: Any) -> int:
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or operator.index(value) < 1:
        raise FadError(f"fad.stream(..., {name}={value!r}): expected an int >= 1.")
    return operator.index(value)
