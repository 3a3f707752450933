"""``AtClients``: a pytree typed as living at the clients."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from fad._errors import (
    ClientAttributeError,
    ClientValueError,
    PlacementError,
    describe,
    path_str,
)

T = TypeVar("T")


class _Inside:
    """The key-path entry of ``AtClients``: prints as nothing, so paths read plainly."""

    def __str__(self) -> str:
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Inside)

    def __hash__(self) -> int:
        return hash(_Inside)


@jax.tree_util.register_pytree_with_keys_class
class AtClients(Generic[T]):
    """Mark a pytree as living at the clients: every leaf is ``[n, *s]``.

    The leading axis of every leaf is the client axis. ``jit``, ``grad``, ``vmap`` and
    ``scan`` carry the value like any pytree; arithmetic on it outside ``fad.map`` is
    refused, because it would mix or move clients' data unseen. Attribute access and
    indexing reach into the *structure* (``data["x"]``, ``local.delta``, unpacking a
    tuple) and never into the client axis.

    Args:
        tree: A pytree of arrays that agree in their leading axis, of one or more
            clients.

    Raises:
        PlacementError: If a leaf is no array, has no axes, or the leading axes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> data = AtClients({"x": jnp.zeros((4, 3)), "y": jnp.ones(4)})
        >>> data
        AtClients({'x': float32[4,3], 'y': float32[4]})
        >>> data["y"].num_clients
        4
    """

    __slots__ = ("_tree",)
    __hash__ = object.__hash__  # identity: __eq__ is refused below

    def __init__(self, tree: T):
        self._tree = tree
        count_clients("fad.AtClients", [("tree", self)])

    @property
    def num_clients(self) -> int:
        """The length of the client axis."""
        return count_clients("AtClients.num_clients", [("", self)]) or 0

    def unsafe_gather(self) -> T:
        """Return the tree with its client axis as ordinary arrays at the server.

        This is the one named way to look at clients' values one by one; a deployed
        program cannot do it through a sum, and ``fad.check`` reports it.

        Returns:
            The wrapped tree, leaves ``[n, *s]``.
        """
        return self._tree

    def tree_flatten_with_keys(self):
        """Flatten for JAX: one child, the wrapped tree."""
        return ((_Inside(), self._tree),), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[T]) -> "AtClients[T]":
        """Rebuild without checks: JAX also passes tracers, shapes and placeholders."""
        del aux
        self = object.__new__(cls)
        self._tree = children[0]
        return self

    def __repr__(self) -> str:
        return f"AtClients({_type_text(self._tree)})"

    def __getattr__(self, name: str) -> "AtClients[Any]":
        if name.startswith("_"):  # copy and pickle ask before there is a tree
            raise AttributeError(name)
        fields = getattr(type(self._tree), "_fields", None)
        fields = fields or getattr(self._tree, "__dataclass_fields__", ())
        if name in fields:
            return AtClients.tree_unflatten(None, (getattr(self._tree, name),))
        if _is_array(self._tree):
            raise ClientAttributeError(_refusal(f".{name}", self))
        raise AttributeError(f"AtClients of {_type_text(self._tree)} has no {name!r}")

    def __getitem__(self, key: Any) -> "AtClients[Any]":
        if isinstance(self._tree, dict | list | tuple):
            return AtClients.tree_unflatten(None, (self._tree[key],))
        raise ClientValueError(_refusal(f"[{key!r}]", self))

    def __iter__(self) -> Iterator["AtClients[Any]"]:
        if isinstance(self._tree, list | tuple):
            return (AtClients.tree_unflatten(None, (v,)) for v in self._tree)
        raise ClientValueError(_refusal("iteration", self))


def _type_text(tree: Any) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{k!r}: {_type_text(v)}" for k, v in tree.items()) + "}"
    if hasattr(tree, "_fields"):
        inner = (f"{k}={_type_text(getattr(tree, k))}" for k in tree._fields)
        return f"{type(tree).__name__}({', '.join(inner)})"
    if isinstance(tree, list | tuple):
        inner = ", ".join(_type_text(v) for v in tree)
        return f"[{inner}]" if isinstance(tree, list) else f"({inner})"
    return describe(tree)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _refusal(operation: str, value: Any) -> str:
    return (
        f"{operation} on a client value, {value!r}, outside fad.map: the server cannot "
        "compute with clients' values one by one. Do the computation at the clients, "
        "fad.map(lambda x: ..., value), then aggregate with fad.sum or fad.mean "
        "(value.unsafe_gather() is the named way out, and fad.check reports it)."
    )


def _forbid(name: str, operation: str) -> None:
    def refuse(self, *args, **kwargs):
        del args, kwargs
        raise ClientValueError(_refusal(operation, self))

    refuse.__name__ = refuse.__qualname__ = name
    setattr(AtClients, name, refuse)


_FORBIDDEN = {
    "+": "add radd",
    "-": "sub rsub neg",
    "*": "mul rmul",
    "/": "truediv rtruediv",
    "//": "floordiv rfloordiv",
    "%": "mod rmod",
    "divmod()": "divmod rdivmod",
    "**": "pow rpow",
    "<<": "lshift rlshift",
    ">>": "rshift rrshift",
    "+ (unary)": "pos",
    "round()": "round",
    "in": "contains",
    "@": "matmul rmatmul",
    "&": "and rand",
    "|": "or ror",
    "^": "xor rxor",
    "~": "invert",
    "abs()": "abs",
    "==": "eq",
    "!=": "ne",
    "<": "lt",
    "<=": "le",
    ">": "gt",
    ">=": "ge",
    "len()": "len",
    "bool()": "bool",
    "float()": "float",
    "int()": "int",
    "use as a JAX array": "jax_array",
    "use as a NumPy array": "array array_ufunc",
}
for _operation, _names in _FORBIDDEN.items():
    for _name in _names.split():
        _forbid(f"__{_name}__", _operation)


def is_at_clients(x: Any) -> bool:
    """Say whether ``x`` is a client value, for use as ``is_leaf``."""
    return isinstance(x, AtClients)


def count_clients(call: str, named: list[tuple[str, Any]]) -> int | None:
    """Return the number of clients that the ``AtClients`` in ``named`` agree on.

    Args:
        call: The call as the user wrote it, for the message.
        named: Pairs of a name and a pytree that may hold ``AtClients``.

    Returns:
        The common length of all client axes, or None where there is no client leaf.

    Raises:
        PlacementError: Naming every argument by its path where they disagree.
    """
    seen: list[tuple[str, Any]] = []
    for root, tree in named:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_at_clients)
        for path, value in leaves:
            if is_at_clients(value):
                inner, _ = jax.tree_util.tree_flatten_with_path(value._tree)
                seen += [(path_str(root, (*path, *p)), x) for p, x in inner]
    for path, x in seen:
        if not getattr(x, "shape", ()):
            raise PlacementError(
                f"{call}: {path} is {describe(x)}, but a client value needs an array "
                "with a leading client axis, [n, *s]. Stack one entry per client "
                "(jnp.stack, jnp.asarray)."
            )
    sizes = {x.shape[0] for _, x in seen}
    if len(sizes) > 1:
        listing = "\n".join(f"  {path}: {describe(x)}" for path, x in seen)
        raise PlacementError(
            f"{call}: client values disagree on the number of clients, "
            f"{sorted(sizes)}:\n{listing}\nEvery leaf must have one entry per client "
            "on its leading axis."
        )
    if sizes == {0}:
        raise PlacementError(f"{call}: {seen[0][0]} has no clients; give at least one.")
    return sizes.pop() if sizes else None
