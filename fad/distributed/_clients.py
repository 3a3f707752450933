"""Clients' data, each process's own, as arrays over the mesh."""

from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fad._errors import FadError, describe, path_str
from fad.distributed._agreement import check_agreement
from fad.distributed._gather import gather, gather_text
from fad.distributed._guard import guard
from fad.distributed._mesh import process_range, rows_per_position
from fad.placement import CLIENTS, AtClients

T = TypeVar("T")
_CALL = "fad.distributed.clients"


@jax.tree_util.register_pytree_node_class
class ShardedClients(Generic[T]):
    """Clients' data over a mesh, padded to rows that the devices divide.

    The leaves are global arrays ``[rows, *s]`` over the mesh axis ``clients``, of which
    the first ``num_clients`` rows are clients and the rest has no meaning. ``fad.jit``
    takes it in the place of ``fad.AtClients`` of ``num_clients`` clients.

    Attributes:
        tree: The pytree of global arrays, leaves ``[rows, *s]``.
        num_clients: The number of clients, at most the number of rows.
    """

    __slots__ = ("num_clients", "tree")

    def __init__(self, tree: T, num_clients: int):
        self.tree = tree
        self.num_clients = num_clients

    def at_clients(self) -> AtClients[T]:
        """Return the data as ``fad.AtClients``, where no row is padding.

        Raises:
            FadError: If the devices do not divide the clients.
        """
        rows = jax.tree.leaves(self.tree)[0].shape[0]
        if rows != self.num_clients:
            raise FadError(
                f"ShardedClients.at_clients: the mesh does not divide "
                f"{self.num_clients} clients, so they are padded to {rows} rows, which "
                "fad.AtClients would count as clients. Pass it to fad.jit(..., "
                "mesh=mesh) as it is."
            )
        return AtClients(self.tree)

    def tree_flatten(self) -> tuple[tuple[T], int]:
        """Flatten for JAX: the tree is data, the number of clients is static."""
        return (self.tree,), self.num_clients

    @classmethod
    def tree_unflatten(cls, aux: int, children: tuple[T]) -> "ShardedClients[T]":
        """Rebuild without checks."""
        return cls(children[0], aux)

    def __repr__(self) -> str:
        return f"ShardedClients({self.num_clients} clients in {self.tree!r})"


def clients(tree: Any, mesh: Mesh, *, n: int) -> ShardedClients[Any]:
    """Assemble the data of each process's own clients into arrays over the mesh.

    All processes call it together, each with the clients of ``local_range(n, mesh)``;
    no process sees another's. ``tree: [local clients, *s] -> [rows, *s]``, where
    ``rows`` is ``n`` or the next number that the mesh divides.

    Args:
        tree: A pytree of arrays, or ``fad.AtClients`` of one, whose leading axis is
            this process's clients.
        mesh: A mesh with an axis ``clients``.
        n: The number of clients, of all processes together.

    Returns:
        What ``fad.jit(..., mesh=mesh)`` takes as a client argument.

    Raises:
        FadError: In all processes, if one gives another number of clients than its
            devices hold, or other leaves, shapes or types than the others.

    Example:
        >>> import numpy as np
        >>> from fad.distributed import local_range, mesh
        >>> mine = local_range(10, mesh())
        >>> clients(np.ones((10, 2), np.float32)[mine], mesh(), n=10).num_clients
        10
    """
    rows = rows_per_position(_CALL, n, mesh)
    tree = tree.unsafe_gather() if isinstance(tree, AtClients) else tree
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    named = [(path_str("tree", path), x) for path, x in leaves]
    _check_all(n, mesh, named[0][1] if named else None, _fault(named))
    check_agreement(f"{_CALL}(n={n})", [(name, _row_type(x)) for name, x in named])
    mine = process_range(_CALL, n, mesh, jax.process_index())
    total = rows * mesh.shape[CLIENTS]
    sharding = NamedSharding(mesh, PartitionSpec(CLIENTS))
    arrays = [_assemble(x, mine.start, total, sharding) for _, x in named]
    return ShardedClients(treedef.unflatten(arrays), int(n))


def _fault(named: list[tuple[str, Any]]) -> str:
    """Say what is wrong with this process's data by itself; empty if nothing is."""
    if not named:
        return "tree: has no arrays; expected leaves with a leading client axis."
    for name, x in named:
        if not isinstance(x, np.ndarray | jax.Array) or x.ndim == 0:
            return f"{name}: expected an array with a client axis, got {describe(x)}."
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return (
                f"{name}: {describe(x)} cannot be put together over processes. Pass "
                "numbers, as jax.random.key_data gives them, and wrap them in fad.map."
            )
        first, like = named[0]
        if x.shape[0] != like.shape[0]:
            return (
                f"the client axes differ: {first} has {like.shape[0]} clients, {name} "
                f"has {x.shape[0]}. Every leaf must have all of this process's clients."
            )
    return ""


def _row_type(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape[1:]))}] of each client"


def _check_all(n: int, mesh: Mesh, leaf: Any, fault: str) -> None:
    """Raise in all processes what is wrong in any."""
    with guard(_CALL):
        faults = gather_text(fault)
        counts = gather(np.array([0 if fault else leaf.shape[0]], np.int32))[:, 0]
    wrong = [f"process {p}: {text}" for p, text in enumerate(faults) if text]
    if wrong:
        raise FadError(f"{_CALL}(n={n}): {' '.join(wrong)}")
    for process, count in enumerate(counts):
        want = process_range(_CALL, n, mesh, process)
        if count != want.stop - want.start:
            wrong.append(
                f"process {process} gives {count} clients, expected "
                f"{want.stop - want.start}, the clients {want.start}:{want.stop}"
            )
    if wrong:
        raise FadError(
            f"{_CALL}(n={n}): {'; '.join(wrong)}. Each process must load the clients "
            "that fad.distributed.local_range(n, mesh) names."
        )


def _assemble(x: Any, start: int, total: int, sharding: NamedSharding) -> jax.Array:
    """Put this process's rows, the first being client ``start``, on its devices."""
    host = np.asarray(x)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)

    def rows_of(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(total)
        own = host[first - start : last - start]
        missing = last - first - len(own)
        # A copy of a client rather than zeros, on which its program may divide by zero.
        like = host[-1:] if len(host) else np.zeros((1, *host.shape[1:]), host.dtype)
        return np.concatenate([own, np.repeat(like, missing, axis=0)])

    return jax.make_array_from_callback((total, *host.shape[1:]), sharding, rows_of)
