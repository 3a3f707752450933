"""``fad_broadcast`` and ``fad_sum``: the two ways across the wire, each other's dual.

With ``B`` the broadcast and ``S`` the sum over ``n`` clients, both linear,

    B: R^s -> R^(n x s),   B x = (x, ..., x),        <B x, y> = <x, S y>,
    S: R^(n x s) -> R^s,   S y = y_1 + ... + y_n,

so each one's derivative is itself and each one's transpose is the other. A derivative
of a federated program therefore holds these same equations and no other communication.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fad._compat import (
    Primitive,
    ad,
    add_leading,
    batching,
    drop_leading,
    explicit_axis,
    mesh_axis,
    mlir,
)
from fad._errors import FadError, path_str
from fad.placement import CLIENTS, AtClients, ambient_clients, is_at_clients
from fad.primitives._operands import (
    check_server,
    client_leaves,
    constrain,
    refuse_keys,
    server_array,
    sum_dtype,
)

T = TypeVar("T")

broadcast_p = Primitive("fad_broadcast")
sum_p = Primitive("fad_sum")


# ------------------------------------------------------------------------------------
# fad_broadcast
# ------------------------------------------------------------------------------------


def _broadcast_impl(x, *, clients, placement):
    axis = mesh_axis(placement, clients)
    if axis is None or not explicit_axis(axis):
        return constrain(jax.lax.broadcast(x, (clients,)), clients, placement)
    spec = add_leading(jax.typeof(x), clients, axis).sharding
    return jax.lax.broadcast(x, (clients,), out_sharding=spec)


def _broadcast_aval(x, *, clients, placement):
    return add_leading(x, clients, mesh_axis(placement, clients))


def _broadcast_transpose(ct, x, *, clients, placement):
    del x
    return [sum_p.bind(ct, clients=clients, placement=placement, wire=None)]


def _broadcast_batch(args, dims, *, clients, placement):
    (x,), (dim,) = args, dims
    return broadcast_p.bind(x, clients=clients, placement=placement), dim + 1


# ------------------------------------------------------------------------------------
# fad_sum
# ------------------------------------------------------------------------------------


# ``wire`` is None, or the types of what a client really sends for its summand, which is
# what that decodes to: it changes what is counted and what is revealed, no value. The
# tangent and the cotangent are not encoded.


def _sum_impl(x, *, clients, placement, wire):
    del clients, placement, wire
    return jnp.sum(x, axis=0)  # a dtype= here would make 16-bit floats accumulate in 16


def _sum_aval(x, *, clients, placement, wire):
    del clients, placement, wire
    out = drop_leading(x)
    return out.update(dtype=sum_dtype(x.dtype), weak_type=x.weak_type)


def _sum_transpose(ct, x, *, clients, placement, wire):
    del x, wire
    return [broadcast_p.bind(ct, clients=clients, placement=placement)]


def _sum_batch(args, dims, *, clients, placement, wire):
    (x,), (dim,) = args, dims
    size = x.shape[dim]
    if dim == 0:  # the client axis leads: [b, n, *s] -> [n, b, *s]
        x, dim = jnp.moveaxis(x, 0, 1), 1
    if wire is not None:
        wire = tuple(jax.ShapeDtypeStruct((size, *w.shape), w.dtype) for w in wire)
    return sum_p.bind(x, clients=clients, placement=placement, wire=wire), dim - 1


def _sum_jvp(primals, tangents, **params):
    out = sum_p.bind(*primals, **params)
    (dx,) = tangents
    if type(dx) is ad.Zero:
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, sum_p.bind(dx, **{**params, "wire": None})


def _register(p, impl, aval, transpose, batch):
    p.def_impl(impl)
    p.def_abstract_eval(aval)
    mlir.register_lowering(p, mlir.lower_fun(impl, multiple_results=False))
    ad.deflinear2(p, transpose)
    batching.primitive_batchers[p] = batch


_register(
    broadcast_p,
    _broadcast_impl,
    _broadcast_aval,
    _broadcast_transpose,
    _broadcast_batch,
)
_register(sum_p, _sum_impl, _sum_aval, _sum_transpose, _sum_batch)
ad.primitive_jvps[sum_p] = _sum_jvp


# ------------------------------------------------------------------------------------
# public functions
# ------------------------------------------------------------------------------------


def broadcast(x: T) -> AtClients[T]:
    """Send a server value to every client.

    ``x: [*s] -> [n, *s]``, leaf by leaf. The tangent is the broadcast of the tangent;
    the transpose is ``fad.sum``.

    Args:
        x: A pytree of arrays or scalars at the server; PRNG keys may travel.

    Returns:
        ``AtClients`` of the same structure.

    Raises:
        PlacementError: If a leaf is a client value already, or outside a program.

    Example:
        >>> import fad
        >>> @fad.program(clients=3)
        ... def twice(x):
        ...     return fad.map(lambda v: 2 * v, fad.broadcast(x))
        >>> twice(1.0).unsafe_gather()
        Array([2., 2., 2.], dtype=float32, weak_type=True)
    """
    n = ambient_clients("fad.broadcast(x)")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(x, is_leaf=is_at_clients)
    for path, leaf in leaves:
        check_server("fad.broadcast(x)", path_str("x", path), leaf)
    out = [
        broadcast_p.bind(server_array(v), clients=n, placement=CLIENTS)
        for _, v in leaves
    ]
    return AtClients.tree_unflatten(None, (treedef.unflatten(out),))


def sum(x: AtClients[T], *, wire: Any = None) -> T:
    """Add up a client value at the server.

    ``x: [n, *s] -> [*s]``, leaf by leaf. The tangent is the sum of the tangents; the
    transpose is ``fad.broadcast``. Floats keep their dtype (16-bit floats accumulate in
    32 bits); bools and ints follow ``jnp.sum``.

    A value that was compressed at the client, ``x = decode(code)``, is summed as it is,
    dense and differentiable; ``wire`` says what of it travels, the code. ``fad.plan``
    counts the code's bytes. Since the server has to decode each code by itself,
    ``fad.check`` refuses such a sum unless told ``allow="decode"``.

    Args:
        x: A client value, a pytree of ``[n, *s]`` leaves.
        wire: For each leaf of ``x`` the types of one client's code, a pytree of
            ``jax.ShapeDtypeStruct`` (``jax.eval_shape`` of the encoder); None if the
            value travels as it is.

    Returns:
        The same structure at the server, leaves ``[*s]``.

    Raises:
        PlacementError: If ``x`` or a leaf of it is a server value, is a PRNG key, or
            has another number of clients than the program; or outside a program.
        FadError: If ``wire`` does not give types for each leaf of ``x``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> fad.program(fad.sum)(fad.AtClients(jnp.arange(4.0)))
        Array(6., dtype=float32)
    """
    call = "fad.sum(x)"
    named, treedef = client_leaves(call, "x", x)
    refuse_keys(call, named)
    n = ambient_clients(call)
    wires = _wires(call, treedef, named, wire)
    out = [
        sum_p.bind(leaf, clients=n, placement=CLIENTS, wire=w)
        for (_, leaf), w in zip(named, wires, strict=True)
    ]
    return treedef.unflatten(out)


def _wires(call: str, treedef: Any, named: list[Any], wire: Any) -> list[Any]:
    """Return the types that travel for each leaf, None for the leaf itself."""
    if wire is None:
        return [None] * len(named)
    try:
        codes = treedef.flatten_up_to(wire)
    except ValueError as error:
        raise FadError(
            f"{call}: wire does not have the structure of x: {error}. Give the types "
            "of a code for each leaf of x."
        ) from error
    found = []
    for (path, _), code in zip(named, codes, strict=True):
        types = jax.tree.leaves(code)
        if not types or not all(isinstance(t, jax.ShapeDtypeStruct) for t in types):
            raise FadError(
                f"{call}: wire for {path} is {code!r}; expected jax.ShapeDtypeStruct. "
                "Use jax.eval_shape(encode, value) at one client's shapes."
            )
        found.append(tuple(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in types))
    return found
