"""The keys of a selection: how they fit a tree, and what is refused."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._compat import is_tracer
from fad._errors import FadError, PlacementError, describe
from fad.placement import AtClients, is_at_clients
from fad.primitives._operands import to_clients_axis


def specs_of(call: str, name: str, tree: Any, keys: Any) -> list[Any]:
    """Return for each leaf of ``tree`` its keys: None, ``AtClients``, or a dict.

    Raises:
        FadError: If the keys do not have the structure of the tree.
    """
    keys = jax.tree.map(_marked_leaves, keys, is_leaf=is_at_clients)
    found: list[Any] = []

    def spread(spec: Any, part: Any) -> None:
        both = isinstance(spec, dict) and isinstance(part, dict)
        if both and spec and {*spec} == {*part}:
            raise FadError(
                f"{call}: {sorted(spec)} are axes, or the names of what {name} holds. "
                "Write {0: {0: keys}, ...}: keys by axis for each leaf."
            )
        leaves = jax.tree.leaves(part, is_leaf=is_at_clients)
        found.extend([spec] * len(leaves))

    try:
        jax.tree.map(spread, keys, tree, is_leaf=_is_spec)
    except ValueError as error:
        raise FadError(
            f"{call}: keys do not have the structure of {name}: {error}. Give for each "
            "leaf None, an AtClients of ints [n, k], or a dict from axes to such. Fill "
            "up clients that want fewer than k with -1."
        ) from error
    return found


def _marked_leaves(keys: Any) -> Any:
    """Move the mark of ``AtClients`` from a tree of keys to each of its leaves."""
    if not is_at_clients(keys):
        return keys
    return jax.tree.map(
        lambda k: AtClients.tree_unflatten(None, (k,)), keys.unsafe_gather()
    )


def _is_spec(keys: Any) -> bool:
    by_axis = isinstance(keys, dict) and all(
        isinstance(a, int) and not isinstance(v, dict) for a, v in keys.items()
    )
    return keys is None or is_at_clients(keys) or by_axis


def keys_of(
    call: str, path: str, shape: Sequence[int], spec: Any, clients: int
) -> tuple[tuple[int, ...], list[jax.Array]]:
    """Return the axes that keys name in a leaf of a shape, rising, and their keys.

    Args:
        call: The call, for messages.
        path: The leaf's path.
        shape: The leaf's shape at the server.
        spec: Its keys.
        clients: The number of clients.

    Raises:
        PlacementError: If keys are no client value of so many clients.
        FadError: If they are no ints ``[n, k]``, name an axis that the leaf does not
            have; or, where values are known, are out of range or name a row twice.
    """
    if spec is None:
        return (), []
    by_axis = spec if isinstance(spec, dict) else {0: spec}
    found = {}
    for axis, keys in by_axis.items():
        where = f"the keys of {path} along axis {axis}"
        if not -len(shape) <= axis < len(shape):
            raise FadError(
                f"{call}: {where}: it has the shape {list(shape)}. Name an axis that "
                "it has."
            )
        axis %= len(shape)
        if axis in found:
            raise FadError(f"{call}: {where}: that axis is named twice. Name it once.")
        found[axis] = _checked(call, where, keys, shape[axis], clients)
    axes = tuple(sorted(found))
    return axes, [found[a] for a in axes]


def _checked(call: str, where: str, keys: Any, size: int, clients: int) -> jax.Array:
    if not is_at_clients(keys):
        raise PlacementError(
            f"{call}: {where} are {describe(keys)}; expected a client value of ints "
            "[n, k]. Mark them with fad.AtClients or compute them with fad.map."
        )
    keys = keys.unsafe_gather()
    dtype = getattr(keys, "dtype", None)
    if (
        dtype is None
        or not jnp.issubdtype(dtype, jnp.integer)
        or getattr(keys, "ndim", 0) != 2
    ):
        raise FadError(
            f"{call}: {where} are {describe(keys)}; expected ints [n, k], as many for "
            "each client. Fill up clients that want fewer with -1."
        )
    if keys.shape[0] != clients:
        raise PlacementError(
            f"{call}: {where} are {describe(keys)}, but the program runs over "
            f"{clients} clients. Give keys for each."
        )
    if not is_tracer(keys):
        _check_values(call, where, np.asarray(keys), size)
    return to_clients_axis(call, where, keys, clients)


def _check_values(call: str, where: str, keys: np.ndarray, size: int) -> None:
    """Refuse keys out of range and keys that name one row twice."""
    outside = np.argwhere((keys < -1) | (keys >= size))
    if len(outside):
        client, place = outside[0].tolist()
        raise FadError(
            f"{call}: {where}: client {client} asks for {keys[client, place]}; "
            f"expected 0 to {size - 1}, or -1 for nothing."
        )
    ordered = np.sort(keys, axis=1)
    again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if again.any():
        client, place = np.argwhere(again)[0].tolist()
        raise FadError(
            f"{call}: {where}: client {client} asks for {ordered[client, place]} more "
            "than once. Name each once, and fill up with -1."
        )
