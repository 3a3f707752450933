"""The rules by which a sum over clients moves through one equation.

A rule takes the evaluation, the equation, the clients' axis in its result and the
weights; it returns the sum, or None where it does not apply.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad.compile._flatten import Eqn, Ref, shape_of
from fad.compile._weights import Weights

# ------------------------------------------------------------------------------------
# what is the same at all clients, or a number per client
# ------------------------------------------------------------------------------------


def same_for_all(run: Any, ref: Ref, axis: int) -> Any:
    """Return a value without its client axis, if it is the same along it."""
    shape = shape_of(ref)
    if shape == ():
        return run.value(ref)
    if shape[axis] == 1 != run.clients:  # ``jax.vmap`` leaves it so
        return jax.lax.squeeze(jnp.asarray(run.value(ref)), [axis])
    eqn = run.made.get(id(ref))
    if eqn is None or eqn.name != "broadcast_in_dim":
        return None
    dims, x = [int(d) for d in eqn.eqn.params["broadcast_dimensions"]], eqn.ins[0]
    if axis in dims and shape_of(x)[dims.index(axis)] != 1:
        return None
    return _narrow(run.value(x), dims, shape, axis)


def _narrow(x: Any, dims: list[int], shape: tuple[int, ...], axis: int) -> Any:
    """Run a broadcast_in_dim without the axis that it repeats along."""
    if axis in dims:
        x = jax.lax.squeeze(x, [dims.index(axis)])
        dims = [d for d in dims if d != axis]
    shape = tuple(k for i, k in enumerate(shape) if i != axis)
    return jax.lax.broadcast_in_dim(x, shape, [d - (d > axis) for d in dims])


def _per_client(run: Any, ref: Ref, axis: int) -> tuple[Any, Ref] | None:
    """Return ``[c]`` if a value is one number per client, repeated; and whence."""
    shape, count = shape_of(ref), run.clients
    if len(shape) <= axis or shape[axis] != count:
        return None
    if len(shape) == 1:
        deeper = _source(run, ref, axis)
        return deeper or (run.value(ref), ref)
    return _source(run, ref, axis)


def _source(run: Any, ref: Ref, axis: int) -> tuple[Any, Ref] | None:
    eqn = run.made.get(id(ref))
    if eqn is None or eqn.name not in ("broadcast_in_dim", "reshape"):
        return None
    x, count = eqn.ins[0], run.clients
    if x.aval.size != count:
        return None
    at = [i for i, k in enumerate(shape_of(x)) if k == count]
    if eqn.name == "broadcast_in_dim":
        if not at or eqn.eqn.params["broadcast_dimensions"][at[0]] != axis:
            return None
    elif ref.aval.size != count:
        return None
    found = _per_client(run, x, at[0]) if at else None
    return found or (run.value(x).reshape(count), x)


# ------------------------------------------------------------------------------------
# rules
# ------------------------------------------------------------------------------------


def _broadcast_in_dim(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    x, dims = eqn.ins[0], [int(d) for d in eqn.eqn.params["broadcast_dimensions"]]
    shape = shape_of(eqn.outs[0])
    if len(eqn.ins) > 1 or axis not in dims:
        return None
    inner = run.total(x, dims.index(axis), weights)
    rest = [d - (d > axis) for d in dims if d != axis]
    shape = [k for i, k in enumerate(shape) if i != axis]
    return jax.lax.broadcast_in_dim(inner, shape, rest)


def _add(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    a, b = _terms(run, eqn, axis, weights)
    return a + b


def _sub(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    a, b = _terms(run, eqn, axis, weights)
    return a - b


def _terms(run: Any, eqn: Eqn, axis: int, weights: Weights) -> tuple[Any, Any]:
    a, b = eqn.ins
    return run.total(a, axis, weights), run.total(b, axis, weights)


def _neg(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    return -run.total(eqn.ins[0], axis, weights)


def _copy(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    return run.total(eqn.ins[0], axis, weights)


def _mul(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    for x, y in (eqn.ins, eqn.ins[::-1]):
        same = same_for_all(run, y, axis)
        if same is not None:
            return weights.of_some(run.total(x, axis, weights) * same)
    for x, y in (eqn.ins, eqn.ins[::-1]):
        number = _per_client(run, y, axis)
        if number is not None and shape_of(x) == shape_of(eqn.outs[0]):
            scale, source = number
            inner = _guarded(run, x, source)
            if inner is not None:
                weights = weights.where(scale != 0)
            return run.total(x if inner is None else inner, axis, weights.times(scale))
    return None


def _div(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    if not jnp.issubdtype(eqn.outs[0].aval.dtype, jnp.inexact):
        return None  # whole numbers are truncated for each client
    same = same_for_all(run, eqn.ins[1], axis)
    if same is None:
        return None
    return weights.of_some(run.total(eqn.ins[0], axis, weights) / same)


def _transpose(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    order = eqn.eqn.params["permutation"]
    inner = run.total(eqn.ins[0], order[axis], weights)
    rest = [p - (p > order[axis]) for p in order if p != order[axis]]
    return jnp.transpose(inner, rest)


def _reshape(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    x, new = eqn.ins[0], eqn.eqn.params["new_sizes"]
    if axis or eqn.eqn.params["dimensions"] or shape_of(x)[:1] != new[:1]:
        return None
    return run.total(x, 0, weights).reshape(new[1:])


def _squeeze(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    dims = sorted(eqn.eqn.params["dimensions"])
    for d in dims:
        axis += d <= axis
    inner = run.total(eqn.ins[0], axis, weights)
    return jax.lax.squeeze(inner, [d - (d > axis) for d in dims])


def _convert_element_type(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    if eqn.ins[0].aval.dtype != eqn.outs[0].aval.dtype:
        return None
    return run.total(eqn.ins[0], axis, weights)


def _select_n(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    if len(eqn.ins) != 3 or eqn.ins[0].aval.dtype != jnp.bool_:
        return None
    number = _per_client(run, eqn.ins[0], axis)
    if number is None:
        return None
    off, on = eqn.ins[1:]
    no = run.total(off, axis, weights.where(~number[0]))
    return no + run.total(on, axis, weights.where(number[0]))


def _reduce_sum(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    axes = sorted(eqn.eqn.params["axes"])
    for d in axes:
        axis += d <= axis
    x = weights.apply(jnp.asarray(run.value(eqn.ins[0])), axis)
    return x.sum((axis, *axes), dtype=x.dtype)


def _dot_general(run: Any, eqn: Eqn, axis: int, weights: Weights) -> Any:
    (cl, cr), (bl, br) = eqn.eqn.params["dimension_numbers"]
    if axis >= len(bl):
        return None
    short = any(ref.aval.dtype != eqn.outs[0].aval.dtype for ref in eqn.ins)
    if short and weights.scale is not None:
        return None  # the numbers per client do not fit the operands' type
    left, right = (run.value(ref) for ref in eqn.ins)
    small = left.size <= right.size
    left = weights.apply(left, bl[axis], scale=small)
    right = weights.apply(right, br[axis], scale=not small)
    run.report.products += 1
    params = {
        k: v
        for k, v in eqn.eqn.params.items()
        if k in ("precision", "preferred_element_type")
    }
    rest = [i for i in range(len(bl)) if i != axis]
    dims = (
        ((*cl, bl[axis]), (*cr, br[axis])),
        (tuple(bl[i] for i in rest), tuple(br[i] for i in rest)),
    )
    return jax.lax.dot_general(left, right, dims, **params)


RULES: dict[str, Callable[[Any, Eqn, int, Weights], Any]] = {
    "add": _add,
    "add_any": _add,
    "broadcast_in_dim": _broadcast_in_dim,
    "convert_element_type": _convert_element_type,
    "copy": _copy,
    "div": _div,
    "dot_general": _dot_general,
    "mul": _mul,
    "neg": _neg,
    "reduce_sum": _reduce_sum,
    "reshape": _reshape,
    "select_n": _select_n,
    "squeeze": _squeeze,
    "sub": _sub,
    "transpose": _transpose,
}
# The operands whose sums a rule asks for.
LINEAR: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("add", "add_any", "sub", "mul"), (0, 1)),
    **dict.fromkeys(("broadcast_in_dim", "convert_element_type", "copy"), (0,)),
    **dict.fromkeys(("div", "neg", "reshape", "squeeze", "transpose"), (0,)),
    "select_n": (1, 2),
}

# ------------------------------------------------------------------------------------
# the guard of fad.weighted_mean
# ------------------------------------------------------------------------------------


def _guarded(run: Any, ref: Ref, scale: Ref) -> Ref | None:
    """Return ``v`` of ``where((scale == 0) & ~isfinite(v), 0, v)``.

    ``fad.weighted_mean`` guards its products so; times ``scale`` it is a mask.
    """
    eqn = run.made.get(id(ref))
    if eqn is None or eqn.name != "select_n" or len(eqn.ins) != 3:
        return None
    test, v, other = eqn.ins
    both, nothing = run.made.get(id(test)), same_for_all(run, other, 0)
    if both is None or both.name != "and" or nothing is None:
        return None
    found = {"zero": False, "finite": False}
    for part in both.ins:
        _test(run, part, v, scale, found)
    return v if all(found.values()) else None


def _test(run: Any, ref: Ref, v: Ref, scale: Ref, found: dict[str, bool]) -> None:
    eqn = run.made.get(id(ref))
    while eqn is not None and eqn.name in ("broadcast_in_dim", "reshape"):
        eqn = run.made.get(id(eqn.ins[0]))
    if eqn is None:
        return
    if eqn.name == "eq":
        source = _per_client(run, eqn.ins[0], 0)
        zero = shape_of(eqn.ins[1]) == () and eqn.ins[1].value == 0
        found["zero"] |= zero and source is not None and source[1] is scale
    elif eqn.name == "not":
        inner = run.made.get(id(eqn.ins[0]))
        finite = inner is not None and inner.name == "is_finite"
        found["finite"] |= finite and inner.ins[0] is v  # type: ignore[union-attr]
