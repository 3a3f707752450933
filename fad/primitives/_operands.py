"""What goes into a primitive: checks by path, sharding, and dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fad._compat import (
    ShapedArray,
    add_leading,
    auto_axis,
    drop_leading,
    explicit_axis,
    mesh_axis,
    spec_of,
)
from fad._errors import PlacementError, describe, path_str
from fad.placement import CLIENTS, ambient_clients, count_clients, is_at_clients


def constrain(x, clients, placement):
    """Keep the client axis split over an Auto mesh axis of the placement's name."""
    axis = mesh_axis(placement, clients)
    if axis is None or not auto_axis(axis):
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axis, *free))


def to_clients_axis(call: str, path: str, x: Any, clients: int) -> jax.Array:
    """Split the client axis over an Explicit mesh axis named like the placement."""
    x = jnp.asarray(x)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not any(explicit_axis(name) for name in mesh.axis_names):
        return x
    aval = jax.typeof(x)
    axis = mesh_axis(CLIENTS, clients)
    want = add_leading(drop_leading(aval), clients, axis).sharding
    have = tuple(aval.sharding.spec)[:1]
    if have not in ((), (None,), (CLIENTS,)):
        raise PlacementError(
            f"{call}: the client axis of {path} is split over the mesh axis "
            f"{have[0]!r}; name that mesh axis {CLIENTS!r}, so that clients stay on "
            "their devices."
        )
    return x if have == tuple(want.spec)[:1] else jax.sharding.reshard(x, want.spec)


def sum_dtype(dtype) -> Any:
    """Return the dtype of a sum: floats keep theirs, bools and ints count as in NumPy.

    It is ``jnp.sum``'s rule (``bool``, ``int8`` and the like widen to the default int),
    the same eagerly and under ``jit``.
    """
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.dtype(dtype)
    return jax.eval_shape(jnp.sum, jax.ShapeDtypeStruct((1,), dtype)).dtype


def accumulator(dtype: Any) -> Any:
    """Return the dtype in which a sum of this dtype is added up: 32 bits for short."""
    short = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if short else dtype


def server_array(x: Any) -> jax.Array:
    """Return ``x`` as a JAX array whose sharding leaves the clients' mesh axis free."""
    x = jnp.asarray(x)
    if not explicit_axis(CLIENTS):
        return x
    sharding = jax.typeof(x).sharding
    spec = [None if s == CLIENTS else s for s in sharding.spec]
    if tuple(spec) == tuple(sharding.spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*spec))


def split_as(x: jax.Array, aval: ShapedArray) -> jax.Array:
    """Return ``x`` split over Explicit mesh axes as a type of its shape says."""
    if aval.sharding.mesh.empty or spec_of(jax.typeof(x)) == spec_of(aval):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*spec_of(aval)))


def check_server(call: str, path: str, x: Any) -> None:
    """Refuse a client value, or what is no array, where a server value belongs."""
    if is_at_clients(x):
        raise PlacementError(
            f"{call}: {path} is a client value already, {x!r}; expected a server "
            "value. Pass it to fad.map as it is, or aggregate it first with fad.sum "
            "or fad.mean."
        )
    if not is_arraylike(x):
        raise PlacementError(
            f"{call}: {path} is {describe(x)}, which is no array or number and cannot "
            "be sent. Remove it from the tree, or close over it in fad.map's function."
        )


def is_arraylike(x: Any) -> bool:
    """Say whether JAX takes ``x`` as an array leaf."""
    try:
        jax.typeof(x)
    except TypeError:
        return False
    return True


def client_leaves(call: str, name: str, x: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Return the client arrays of ``x`` by path, and the structure without the marks.

    Raises:
        PlacementError: If a leaf is a server value, or has another number of clients.
    """
    n = ambient_clients(call)
    leaves, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=is_at_clients)
    for path, leaf in leaves:
        if not is_at_clients(leaf):
            raise PlacementError(
                f"{call}: {path_str(name, path)} is a server value, {describe(leaf)}; "
                "expected a client value. Send it to the clients with fad.broadcast "
                "first, or mark an array that has a client axis with fad.AtClients."
            )
    found = count_clients(call, [(name, x)])
    flat, _ = jax.tree_util.tree_flatten_with_path(x)
    named = [(path_str(name, path), leaf) for path, leaf in flat]
    if found is not None and found != n:
        listing = "\n".join(f"  {path}: {describe(v)}" for path, v in named)
        raise PlacementError(
            f"{call}: the program runs over {n} clients, but {named[0][0]} has "
            f"{found}:\n{listing}\nGive every client value a leading axis of {n}."
        )
    plain = jax.tree.map(
        lambda v: v.unsafe_gather() if is_at_clients(v) else v, x, is_leaf=is_at_clients
    )
    named = [(path, to_clients_axis(call, path, v, n)) for path, v in named]
    return named, jax.tree.structure(plain)


def refuse_keys(call: str, named: list[tuple[str, Any]]) -> None:
    """Raise ``PlacementError`` where a leaf to be added up is a PRNG key."""
    for path, leaf in named:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise PlacementError(
                f"{call}: {path} is {describe(leaf)}: PRNG keys cannot be added. Leave "
                "them at the clients."
            )
