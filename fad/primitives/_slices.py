"""Slices of server values at the clients, and their sums where they came from."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fad._compat import spec_of
from fad._errors import FadError, PlacementError, describe, path_str
from fad.placement import CLIENTS, AtClients, ambient_clients, is_at_clients
from fad.primitives._broadcast_sum import broadcast_p, sum_p
from fad.primitives._keys import keys_of, specs_of
from fad.primitives._operands import (
    check_server,
    client_leaves,
    server_array,
    split_as,
)
from fad.primitives._operands import refuse_keys as refuse_prng_keys
from fad.primitives._select import deselect_p, select_p


def select(x: Any, keys: Any, *, public: bool = False) -> AtClients[Any]:
    """Send every client the slices of server values that its keys name.

    ``x: [K, *s], keys: [n, k] -> [n, k, *s]``, and likewise along several axes: only
    the slices are sent. The tangent is the selection of the tangent; the transpose is
    ``fad.deselect``, which adds the slices up where they came from.

    Args:
        x: A pytree of arrays at the server.
        keys: For each leaf of ``x`` an ``AtClients`` of ints ``[n, k]``, rows along the
            first axis; a dict from axes to such, for a block; or None, for the whole
            leaf. One that stands for a whole subtree of ``x`` is that of its leaves. A
            key of -1 names nothing: its row is zero, which fills up clients that want
            fewer. One out of range gives NaN (0 in ints).
        public: Whether the server knows the keys without being told, as it does where
            they follow from the round and from who takes part. Otherwise clients send
            them first, one by one, which ``fad.plan`` counts and ``fad.check`` refuses
            unless told ``allow="keys"``.

    Returns:
        ``AtClients`` of the structure of ``x``.

    Raises:
        PlacementError: If a leaf of ``x`` is a client value, or a PRNG key that has
            keys; if keys are no client value; or outside a program.
        FadError: If keys are no ints ``[n, k]``, do not fit the structure of ``x``,
            name an axis that a leaf does not have; or, where their values are known,
            are out of range or name a row twice.

    Example:
        >>> import fad
        >>> @fad.program
        ... def rows(x, keys):
        ...     return fad.select(x, keys)
        >>> keys = fad.AtClients(jnp.array([[0, 2], [1, -1]]))
        >>> rows(jnp.array([10.0, 20.0, 30.0]), keys).unsafe_gather().tolist()
        [[10.0, 30.0], [20.0, 0.0]]

    References:
        Z. Charles et al., Federated Select: A Primitive for Communication- and
        Memory-Efficient Federated Learning, 2022.
    """
    call = "fad.select(x, keys)"
    n = ambient_clients(call)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(x, is_leaf=is_at_clients)
    for path, leaf in leaves:
        check_server(call, path_str("x", path), leaf)
    out, common = [], {"clients": n, "placement": CLIENTS}
    for (path, leaf), spec in zip(leaves, specs_of(call, "x", x, keys), strict=True):
        leaf, path = server_array(leaf), path_str("x", path)
        axes, own = keys_of(call, path, leaf.shape, spec, n)
        if axes:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise PlacementError(
                    f"{call}: {path} is {describe(leaf)}: of PRNG keys no row is zero, "
                    "as for -1 it must be. Select from jax.random.key_data of it."
                )
            leaf = _whole_along(leaf, axes)
            leaf = select_p.bind(leaf, *own, axes=axes, public=public, **common)
        else:
            leaf = broadcast_p.bind(leaf, **common)
        out.append(leaf)
    return AtClients.tree_unflatten(None, (treedef.unflatten(out),))


def deselect(
    y: AtClients[Any], keys: Any, like: Any, *, public: bool = False, wire: Any = None
) -> Any:
    """Add up the clients' slices where their keys say: ``[n, k, *s] -> [K, *s]``.

    The transpose of ``fad.select``: a row that several clients have is the sum of
    theirs, a row that none has is zero, and what stands at a key of -1 is dropped. Only
    the slices are sent; 16-bit floats are added up in 32 bits. A key out of range makes
    the result NaN.

    Args:
        y: A client value, slices of ``like``.
        keys: As of ``fad.select``; -1 fills up.
        like: A pytree of arrays, or of their types, at the server.
        public: As of ``fad.select``.
        wire: What of each leaf travels, a tuple of ``jax.ShapeDtypeStruct``, one for
            all leaves, if not the slices; ``()`` for what the server knows, which
            ``fad.plan`` and ``fad.check`` believe.

    Returns:
        The sums, of the structure and the shapes of ``like``.

    Raises:
        PlacementError: If ``y`` or the keys are no client values, or ``like`` is one,
            or outside a program.
        FadError: As of ``fad.select``; or ``y`` and ``like`` differ in their structure,
            or a slice has another shape than its keys say; or ``wire`` is no such
            tuple.

    Example:
        >>> import fad
        >>> @fad.program
        ... def back(y, keys):
        ...     return fad.deselect(y, keys, like=jnp.zeros(3))
        >>> y = fad.AtClients(jnp.array([[1.0, 2.0], [4.0, 8.0]]))
        >>> back(y, fad.AtClients(jnp.array([[0, 2], [2, -1]]))).tolist()
        [1.0, 0.0, 6.0]

    References:
        Z. Charles et al., Federated Select: A Primitive for Communication- and
        Memory-Efficient Federated Learning, 2022.
    """
    call = "fad.deselect(y, keys, like)"
    wires = itertools.repeat(_checked_wire(call, wire))
    return deselect_leaves(call, y, keys, like, public, wires)


def _checked_wire(call: str, wire: Any) -> tuple[jax.ShapeDtypeStruct, ...] | None:
    if wire is None:
        return None
    types = isinstance(wire, tuple) and all(
        isinstance(t, jax.ShapeDtypeStruct) for t in wire
    )
    if not types:
        raise FadError(
            f"{call}: wire is {wire!r}; expected a tuple of jax.ShapeDtypeStruct. Give "
            "the types of one client's code, or () for what the server knows."
        )
    return tuple(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in wire)


def deselect_leaves(
    call: str,
    y: Any,
    keys: Any,
    like: Any,
    public: bool,
    wires: Iterator[Any],
    name: str = "like",
) -> Any:
    n = ambient_clients(call)
    found, treedef = client_leaves(call, "y", y)
    refuse_prng_keys(call, found)
    at_server, _ = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_at_clients)
    for path, leaf in at_server:
        check_server(call, path_str(name, path), leaf)
    if jax.tree.structure(like) != treedef:
        raise FadError(
            f"{call}: y has the structure {treedef}; expected that of {name}, "
            f"{jax.tree.structure(like)}. Give each leaf's slices."
        )
    shapes = [jnp.shape(v) for _, v in at_server]
    specs = specs_of(call, name, like, keys)
    out, common = [], {"clients": n, "placement": CLIENTS}
    for (path, leaf), shape, spec in zip(found, shapes, specs, strict=True):
        axes, own = keys_of(call, path, shape, spec, n)
        _check_slices(call, path, leaf, shape, dict(zip(axes, own, strict=True)))
        leaf = _whole_along(leaf, [a + 1 for a in axes])
        params = {"axes": axes, "shape": shape, "public": public} if axes else {}
        p = deselect_p if axes else sum_p
        out.append(p.bind(leaf, *own, wire=next(wires), **params, **common))
    pairs = zip(out, at_server, strict=True)
    out = [
        split_as(v, jax.typeof(x)) if isinstance(x, jax.Array) else v
        for v, (_, x) in pairs
    ]
    return treedef.unflatten(out)


def _check_slices(
    call: str, path: str, leaf: jax.Array, shape: Sequence[int], keys: dict[int, Any]
) -> None:
    """Refuse slices of another shape than their keys say."""
    of_one = [keys[a].shape[1] if a in keys else size for a, size in enumerate(shape)]
    expected = [leaf.shape[0], *of_one]
    if list(leaf.shape) != expected:
        raise FadError(
            f"{call}: {path} is {describe(leaf)}; expected {expected}, what its keys "
            f"name of the server's {list(shape)}. Give as many as keys, and those of "
            "-1 too."
        )


def _whole_along(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Return ``x`` with no Explicit mesh axis along what keys name."""
    have = spec_of(jax.typeof(x))
    spec = tuple(None if a in axes else s for a, s in enumerate(have))
    return x if spec == have else jax.sharding.reshard(x, PartitionSpec(*spec))
