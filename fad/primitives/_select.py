"""``fad_select`` and ``fad_deselect``: the slices of server values that keys name.

Client i has keys ``k_i`` for some axes of a server value ``x``. With ``x[k_i]`` the
slice they name and ``place_i`` its transpose, which puts a slice into zeros,

    select:    x -> (x[k_1], ..., x[k_n])
    deselect:  (y_1, ..., y_n) -> sum_i place_i(y_i)

are linear in what they move and each other's transpose, <select x, y> = <x, deselect
y>. Only slices cross the wire. The key -1 names nothing: its row is zero, and is
dropped. A key out of range gives NaN, so that nothing is lost unseen.

``public`` says whether the server knows the keys without being told; ``wire`` of
``fad_deselect`` is that of ``fad_sum``, and ``()`` where nothing needs to travel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fad._compat import (
    Primitive,
    ad,
    add_leading,
    auto_axis,
    batching,
    drop_leading,
    mesh_axis,
    mlir,
    spec_of,
)
from fad.primitives._operands import constrain, sum_dtype
from fad.primitives._rows import put_all, take

select_p = Primitive("fad_select")
deselect_p = Primitive("fad_deselect")


# ------------------------------------------------------------------------------------
# fad_select
# ------------------------------------------------------------------------------------


def _select_impl(x, *keys, axes, clients, placement, public):
    def impl(x, *keys):
        axis = mesh_axis(placement, clients)
        split = axis if axis is not None and auto_axis(axis) else None
        each = jax.vmap(lambda *own: take(x, *own, axes=axes), spmd_axis_name=split)
        own = [constrain(k, clients, placement) for k in keys]
        return constrain(each(*own), clients, placement)

    params = {"axes": axes, "clients": clients, "placement": placement}
    out = _select_aval(jax.typeof(x), *keys, public=public, **params)
    return _by_compiler(impl, out)(x, *keys)


def _select_aval(x, *keys, axes, clients, placement, public):
    del public
    shape = list(x.shape)
    for axis, key in zip(axes, keys, strict=True):
        shape[axis] = key.shape[1]
    one = _update(x, shape, axes)
    return add_leading(one, clients, mesh_axis(placement, clients))


def _select_jvp(primals, tangents, **params):
    out, (_, *keys) = select_p.bind(*primals, **params), primals
    if type(tangents[0]) is ad.Zero:
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, select_p.bind(tangents[0], *keys, **params)


def _select_transpose(ct, x, *keys, **params):
    if type(ct) is ad.Zero:
        return [ad.Zero(x.aval.to_ct_aval())] + [None] * len(keys)
    out = deselect_p.bind(ct, *keys, shape=x.aval.shape, wire=None, **params)
    return [out] + [None] * len(keys)


def _select_batch(args, dims, *, axes, **params):
    (x, *keys), (dim, *of_keys) = args, dims
    if any(d is not None for d in of_keys):
        return _one_by_one(select_p, 1, args, dims, {**params, "axes": axes})
    x = jnp.moveaxis(x, dim, 0)
    axes = tuple(a + 1 for a in axes)
    return select_p.bind(x, *keys, axes=axes, **params), 1


def _one_by_one(p, moved, args, dims, params):
    """Bind for each place of a batch axis that keys have: each names its own slices."""
    sizes = [v.shape[d] for v, d in zip(args, dims, strict=True) if d is not None]
    outs = []
    for b in range(sizes[0]):
        own = [
            v if d is None else jax.lax.index_in_dim(v, b, d, keepdims=False)
            for v, d in zip(args, dims, strict=True)
        ]
        outs.append(p.bind(*own, **params))
    return jnp.stack(outs, axis=moved), moved


# ------------------------------------------------------------------------------------
# fad_deselect
# ------------------------------------------------------------------------------------


def _deselect_impl(y, *keys, axes, shape, clients, placement, public, wire):
    def impl(*args):
        own = [constrain(v, clients, placement) for v in args]
        return put_all(*own, shape=shape, axes=axes)

    params = {"axes": axes, "shape": shape, "clients": clients, "placement": placement}
    out = _deselect_aval(jax.typeof(y), public=public, wire=wire, **params)
    return _by_compiler(impl, out)(y, *keys)


def _deselect_aval(y, *keys, axes, shape, clients, placement, public, wire):
    del keys, clients, placement, public, wire
    out = _update(drop_leading(y), shape, axes)
    return out.update(dtype=sum_dtype(y.dtype), weak_type=y.weak_type)


def _deselect_jvp(primals, tangents, **params):
    out, (_, *keys) = deselect_p.bind(*primals, **params), primals
    if type(tangents[0]) is ad.Zero:
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, deselect_p.bind(tangents[0], *keys, **{**params, "wire": None})


def _deselect_transpose(ct, y, *keys, shape, wire, **params):
    del shape, wire
    if type(ct) is ad.Zero:
        return [ad.Zero(y.aval.to_ct_aval())] + [None] * len(keys)
    return [select_p.bind(ct, *keys, **params)] + [None] * len(keys)


def _deselect_batch(args, dims, *, axes, shape, wire, **params):
    (y, *keys), (dim, *of_keys) = args, dims
    size = next(v.shape[d] for v, d in zip(args, dims, strict=True) if d is not None)
    if any(d is not None for d in of_keys):
        params |= {"axes": axes, "shape": shape, "wire": wire}
        return _one_by_one(deselect_p, 0, args, dims, params)
    y = jnp.moveaxis(y, dim, 1)
    if wire is not None:
        wire = tuple(jax.ShapeDtypeStruct((size, *w.shape), w.dtype) for w in wire)
    axes, shape = tuple(a + 1 for a in axes), (size, *shape)
    return deselect_p.bind(y, *keys, axes=axes, shape=shape, wire=wire, **params), 0


# ------------------------------------------------------------------------------------
# both
# ------------------------------------------------------------------------------------


def _update(one: Any, shape: Sequence[int], axes: Sequence[int]) -> Any:
    """Return the type of another slice: no mesh axis splits what keys name."""
    if one.sharding.mesh.empty:
        return one.update(shape=tuple(shape), sharding=None)
    spec = [None if a in axes else s for a, s in enumerate(spec_of(one))]
    sharding = NamedSharding(one.sharding.mesh, PartitionSpec(*spec))
    return one.update(shape=tuple(shape), sharding=sharding)


def _by_compiler(impl: Callable, out: Any) -> Callable:
    """Run ``impl`` with Auto mesh axes: who gathers on Explicit ones says the split."""
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        return impl
    return jax.sharding.auto_axes(impl, out_sharding=out.sharding)


@functools.lru_cache
def _compiled(impl: Callable, params: tuple[tuple[str, Any], ...]) -> Callable:
    return jax.jit(functools.partial(impl, **dict(params)))


def _register(p: Primitive, impl: Any, aval: Any, jvp: Any, transpose: Any, batch: Any):
    p.def_impl(lambda *xs, **params: _compiled(impl, tuple(params.items()))(*xs))
    p.def_abstract_eval(aval)
    mlir.register_lowering(p, mlir.lower_fun(impl, multiple_results=False))
    ad.primitive_jvps[p] = jvp
    ad.primitive_transposes[p] = transpose
    batching.primitive_batchers[p] = batch


_register(
    select_p, _select_impl, _select_aval, _select_jvp, _select_transpose, _select_batch
)
_register(
    deselect_p,
    _deselect_impl,
    _deselect_aval,
    _deselect_jvp,
    _deselect_transpose,
    _deselect_batch,
)
