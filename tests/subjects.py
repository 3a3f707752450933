"""The table of subjects: every primitive, as fad and as plain JAX writes it.

A row of ``OPERATIONS`` is one program with its oracle, a row of ``LEAVES`` one kind of
argument, a row of ``MESHES`` one way to lay out the clients. Every transformation's
tests run over them, so a new primitive, dtype or mesh is one new row.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import fad
from tests import masks
from tests.masks import N


class Pair(NamedTuple):
    first: Any
    second: Any


# ------------------------------------------------------------------------------------
# arguments
# ------------------------------------------------------------------------------------

# How to lay leaves out in a pytree; ``leaf(*shape)`` makes one.
TREES: dict[str, Callable] = {
    "array": lambda leaf: leaf(3),
    "scalar": lambda leaf: leaf(),
    "nested": lambda leaf: {"a": (leaf(2), [leaf(2, 3)]), "b": Pair(leaf(), leaf(3))},
    "empty": lambda leaf: {},
}
LEAVES = (
    ("float32", "array"),
    ("float32", "scalar"),
    ("float32", "nested"),
    ("float32", "empty"),
    ("float64", "array"),
    ("float64", "nested"),
    ("bfloat16", "nested"),
    ("int32", "array"),
    ("bool", "array"),
    ("key", "nested"),
)

# For what treats every leaf alike but for its rank, and compiles slowly.
FEW_LEAVES = (("float64", "nested"), ("bfloat16", "array"), ("int32", "array"))


def make_tree(dtype: str, tree: str, *, lead: tuple[int, ...] = (), seed: int = 0):
    """Return a pytree of fixed random leaves ``[*lead, *s]``."""
    random = np.random.default_rng(seed)

    def leaf(*shape):
        shape = (*lead, *shape)
        if dtype == "key":
            return jax.random.split(jax.random.key(seed), shape)
        if dtype in ("bool", "int32"):
            return jnp.asarray(random.integers(0, 2 + (dtype != "bool"), shape), dtype)
        return jnp.asarray(random.normal(size=shape), dtype)

    return TREES[tree](leaf)


# ------------------------------------------------------------------------------------
# programs and their oracles
# ------------------------------------------------------------------------------------


class Operation(NamedTuple):
    program: Callable  # client values are AtClients
    plain: Callable  # client values are arrays [n, *s]
    at_clients: tuple[bool, ...]  # of the arguments
    linear: bool = False
    keys: bool = False  # takes PRNG keys
    weighted: str = ""  # dtype of a last argument, one scalar per client
    leaves: tuple[tuple[str, str], ...] = LEAVES


def _client_work(tree):
    def leaf(v):
        if jnp.issubdtype(v.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jax.random.key_data(v) ^ 1)
        return jnp.sin(v) * v if jnp.issubdtype(v.dtype, jnp.inexact) else ~v

    return jax.tree.map(leaf, tree)


def _affine(x, server):
    return jax.tree.map(lambda a, b: a & b if a.dtype == bool else a * b + a, x, server)


def _as_float(x):
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return x if inexact else x.astype(jnp.result_type(float))


def _plain_mean(x):
    return jax.tree.map(lambda v: _as_float(v).sum(0) / v.shape[0], x)


def _plain_weighted_mean(x, w):
    def leaf(v):
        v, u = _as_float(v), _as_float(w)
        with jax.numpy_dtype_promotion("standard"):
            total = (v * u.reshape(-1, *[1] * (v.ndim - 1))).sum(0) / u.sum()
        return total.astype(v.dtype)

    return jax.tree.map(leaf, x)


def _deselect(y):
    like = masks.larger(y.unsafe_gather())
    return fad.deselect(y, masks.selection(like, fewer=1), like)


OPERATIONS = {
    "broadcast": Operation(
        fad.broadcast,
        lambda x: jax.tree.map(lambda v: jnp.broadcast_to(v, (N, *v.shape)), x),
        (False,),
        linear=True,
        keys=True,
    ),
    "sum": Operation(
        fad.sum, lambda x: jax.tree.map(lambda v: v.sum(0), x), (True,), linear=True
    ),
    "mean": Operation(fad.mean, _plain_mean, (True,), linear=True),
    "weighted_mean": Operation(
        fad.weighted_mean, _plain_weighted_mean, (True, True), weighted="float32"
    ),
    "counted_mean": Operation(
        fad.weighted_mean, _plain_weighted_mean, (True, True), weighted="int32"
    ),
    "map": Operation(
        lambda x: fad.map(_client_work, x),
        lambda x: jax.vmap(_client_work, axis_size=N)(x),
        (True,),
        keys=True,
    ),
    "map_remat": Operation(
        lambda x: fad.map(_client_work, x, remat=True),
        lambda x: jax.vmap(_client_work, axis_size=N)(x),
        (True,),
        keys=True,
    ),
    "map_closure": Operation(
        lambda x, server: fad.map(lambda v: _affine(v, server), x),
        lambda x, server: jax.vmap(_affine, (0, None), axis_size=N)(x, server),
        (True, False),
    ),
    "map_broadcast": Operation(
        lambda x, server: fad.map(_affine, x, fad.broadcast(server)),
        lambda x, server: jax.vmap(_affine, (0, None), axis_size=N)(x, server),
        (True, False),
    ),
    "sum_of_map": Operation(
        lambda x: fad.sum(fad.map(_client_work, x)),
        lambda x: jax.tree.map(
            lambda v: v.sum(0), jax.vmap(_client_work, axis_size=N)(x)
        ),
        (True,),
    ),
    "select": Operation(
        lambda x: fad.select(x, masks.selection(x, fewer=1)),
        jax.jit(lambda x: masks.take(x, fewer=1)),
        (False,),
        linear=True,
        leaves=(*FEW_LEAVES, ("bool", "array"), ("float32", "empty")),
    ),
    "deselect": Operation(
        _deselect,
        jax.jit(masks.deselect),
        (True,),
        linear=True,
        leaves=(*FEW_LEAVES, ("bool", "array"), ("float32", "empty")),
    ),
    "coverage_mean": Operation(
        lambda y, x: fad.coverage_mean(y, masks.selection(x), x),
        jax.jit(masks.coverage_mean),
        (True, False),
        leaves=(("float32", "nested"), *FEW_LEAVES[1:]),
    ),
    "weighted_coverage": Operation(
        lambda y, x, w: fad.coverage_mean(y, masks.selection(x), x, weights=w),
        jax.jit(masks.coverage_mean),
        (True, False, True),
        weighted="float32",
        leaves=FEW_LEAVES[:1],
    ),
}


class Subject(NamedTuple):
    """One program on one kind of argument."""

    operation: str
    dtype: str
    tree: str

    @property
    def num_args(self) -> int:
        return len(OPERATIONS[self.operation].at_clients)

    def precision(self):
        """Return the context that the subject's dtype needs."""
        return (
            jax.enable_x64(True)
            if self.dtype == "float64"
            else contextlib.nullcontext()
        )

    def args(self, seed: int = 0) -> tuple:
        """Return the program's arguments; the oracle takes ``gather`` of them."""
        op, out = OPERATIONS[self.operation], []
        for i, at_clients in enumerate(op.at_clients):
            if i == self.num_args - 1 and op.weighted:
                weights = jnp.asarray([1, 3, 2, 5][:N], op.weighted)
                out.append(fad.AtClients(weights))
                continue
            lead = (N,) if at_clients else ()
            tree = make_tree(self.dtype, self.tree, lead=lead, seed=seed + i)
            out.append(fad.AtClients(tree) if at_clients else tree)
        return tuple(out)

    def program(self, *args):
        """Run under fad."""
        return fad.program(OPERATIONS[self.operation].program, clients=N)(*args)

    def marked(self, *args):
        """Run in plain JAX, on the program's own arguments."""
        return OPERATIONS[self.operation].plain(*gather(args))


SUBJECTS = [
    Subject(operation, *leaves)
    for operation in OPERATIONS
    for leaves in OPERATIONS[operation].leaves
    if OPERATIONS[operation].keys or leaves[0] != "key"
]
# Double precision says more than single where it has the same row.
_DIFFERENTIATED = {("float32", "scalar"), ("float64", "array"), ("float64", "nested")}
SMOOTH = [s for s in SUBJECTS if s[1:] in _DIFFERENTIATED]
LINEAR = [s for s in SMOOTH if OPERATIONS[s.operation].linear]


def over(subjects: Iterable[Subject]) -> pytest.MarkDecorator:
    """Parametrise a test over subjects."""
    return pytest.mark.parametrize("subject", subjects, ids="-".join)


# ------------------------------------------------------------------------------------
# meshes
# ------------------------------------------------------------------------------------

_A, _E = AxisType.Auto, AxisType.Explicit
# Axis names, axis sizes, axis types; the tests' machine has eight virtual devices.
MESHES: dict[str, tuple | None] = {
    "none": None,
    "auto_clients": (("clients",), (4,), (_A,)),
    "explicit_clients": (("clients",), (4,), (_E,)),
    "explicit_model": (("model",), (4,), (_E,)),
    "explicit_clients_model": (("clients", "model"), (4, 2), (_E, _E)),
}


def on_mesh(name: str):
    """Return the context of a mesh of the table."""
    row = MESHES[name]
    if row is None:
        return contextlib.nullcontext()
    names, sizes, types = row
    return jax.set_mesh(jax.make_mesh(sizes, names, axis_types=types))


# ------------------------------------------------------------------------------------
# comparisons
# ------------------------------------------------------------------------------------

_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}


def gather(tree: Any) -> Any:
    """Return ``tree`` without the marks of ``AtClients``."""
    is_marked = lambda v: isinstance(v, fad.AtClients)  # noqa: E731
    return jax.tree.map(
        lambda v: gather(v.unsafe_gather()) if is_marked(v) else v,
        tree,
        is_leaf=is_marked,
    )


def assert_same(actual: Any, expected: Any, *, tol: float | None = None) -> None:
    """Assert equal structures, shapes and dtypes, and close values; marks aside."""
    actual, expected = gather(actual), gather(expected)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = jnp.asarray(a), jnp.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        t = _TOLERANCE.get(str(a.dtype), 0.0) if tol is None else tol
        wide = np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
        np.testing.assert_allclose(a, b, rtol=t, atol=t)


def types(tree: Any) -> Any:
    """Return shape, dtype and weak type of every leaf."""
    return jax.tree.map(lambda v: (v.shape, v.dtype, _is_weak(v)), gather(tree))


def _is_weak(x: Any) -> bool:
    return (x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)).weak_type


def make_like(tree: Any, seed: int) -> Any:
    """Return fixed random values of the shapes and float dtypes of ``tree``."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda v: jnp.asarray(random.normal(size=v.shape), v.dtype), tree
    )


def inner(a: Any, b: Any) -> jax.Array:
    """Return the inner product of two pytrees; marks aside."""
    products = jax.tree.map(jnp.vdot, gather(a), gather(b))
    return jax.tree.reduce(jnp.add, products)
