"""Where a client axis goes: one rule per primitive of JAX that keeps it.

A rule says at which position of the output an axis of an input stands, or None where
the equation sums, picks, merges or hides it. A primitive without a rule is not known to
keep the axis, so it counts as a leak.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from fad._compat import JaxprEqn, jaxprs_in_params

# Every output element is made of the elements at the same place of the inputs.
_ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh
    digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac
    imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max
    mesh_cast min mul ne neg nextafter not or polygamma population_count pow pvary
    random_clone random_fold_in random_seed real reduce_precision
    regularized_incomplete_beta rem reshard round rsqrt select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh threefry2x32 xor zeta""".split()
)
# Output i is input i.
IDENTITIES = frozenset({"optimization_barrier", "device_put"})
HOST = frozenset(
    """pure_callback io_callback debug_callback debug_print outfeed infeed
    xla_python_callback""".split()
)


def moved(eqn: JaxprEqn, i: int, axis: int) -> int | None:
    """Return where ``axis`` of input ``i`` stands in the outputs, None if nowhere."""
    name = eqn.primitive.name
    if name in _ELEMENTWISE:
        return _same_place(eqn, i, axis)
    rule = _scatter if name.startswith("scatter") else _RULES.get(name)
    return None if rule is None else rule(eqn, i, axis)


def has_rule(eqn: JaxprEqn) -> bool:
    """Say whether fad knows what the primitive does to a client axis."""
    name = eqn.primitive.name
    return name in _ELEMENTWISE or name in _RULES or name.startswith("scatter")


def holds(eqn: JaxprEqn, names: frozenset[str]) -> bool:
    """Say whether a primitive of these names stands inside an equation."""
    inner = (e for jaxpr in jaxprs_in_params(eqn.params) for e in jaxpr.eqns)
    return any(e.primitive.name in names or holds(e, names) for e in inner)


def leaves_the_device(eqn: JaxprEqn) -> bool:
    moves = eqn.primitive.name == "device_put"
    return moves and any(d is not None for d in eqn.params["devices"])


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _axes(param: Any) -> tuple[int, ...]:
    return tuple(param) if isinstance(param, Sequence) else (int(param),)


def _same_place(eqn, i, axis):
    """An axis of one element may be stretched, which gives others its entry."""
    same = _shape(eqn.outvars[0])[axis] == _shape(eqn.invars[i])[axis]
    return axis if same else None


def _without(axis: int, gone: Sequence[int]) -> int | None:
    return None if axis in gone else axis - sum(g < axis for g in gone)


def _removes(param: str) -> Callable:
    def rule(eqn, i, axis):
        del i
        return _without(axis, _axes(eqn.params[param]))

    return rule


def _avoids(param: str) -> Callable:
    def rule(eqn, i, axis):
        del i
        return None if axis in _axes(eqn.params[param]) else axis

    return rule


def _stack(eqn, i, axis):
    del i
    return axis + (axis >= eqn.params["axis"])


def _transpose(eqn, i, axis):
    del i
    return list(eqn.params["permutation"]).index(axis)


def _broadcast_in_dim(eqn, i, axis):
    out = eqn.params["broadcast_dimensions"][axis]
    same = _shape(eqn.outvars[0])[out] == _shape(eqn.invars[i])[axis]
    return out if same else None


def _reshape(eqn, i, axis):
    """An axis stays where as many elements stand before it and in it as before."""
    old, new = _shape(eqn.invars[i]), _shape(eqn.outvars[0])
    before, size = math.prod(old[:axis]), old[axis]
    if eqn.params["dimensions"] is not None:
        return None
    places = (
        d
        for d, n in enumerate(new)
        if n == size and math.prod(new[:d]) == before and _same_ones(old, new, axis, d)
    )
    return next(places, None)


def _same_ones(old, new, axis, place):
    """Among axes of one element, only the order tells them apart."""
    return old[axis] != 1 or old[:axis] == new[:place]


def _pad(eqn, i, axis):
    kept = i == 0 and tuple(eqn.params["padding_config"][axis]) == (0, 0, 0)
    return axis if kept else None


def _slice(eqn, i, axis):
    p, n = eqn.params, _shape(eqn.invars[i])[axis]
    step = 1 if p["strides"] is None else p["strides"][axis]
    whole = (p["start_indices"][axis], p["limit_indices"][axis], step) == (0, n, 1)
    return axis if whole else None


def _dynamic_slice(eqn, i, axis):
    whole = eqn.params["slice_sizes"][axis] == _shape(eqn.invars[i])[axis]
    return axis if whole else None


def _dynamic_update_slice(eqn, i, axis):
    whole = _shape(eqn.invars[i])[axis] == _shape(eqn.invars[0])[axis]
    return axis if whole else None


def _leading(eqn, i, axis):
    """PRNG keys and bit patterns: what is added or dropped stands behind."""
    old, new = _shape(eqn.invars[i]), _shape(eqn.outvars[0])
    return axis if axis < len(new) and old[: axis + 1] == new[: axis + 1] else None


def _dot_general(eqn, i, axis):
    contract, batch = eqn.params["dimension_numbers"]
    if axis in contract[i]:
        return None
    if axis in batch[i]:
        return list(batch[i]).index(axis)

    def free(j):
        ndim = len(_shape(eqn.invars[j]))
        return [a for a in range(ndim) if a not in contract[j] and a not in batch[j]]

    return len(batch[0]) + i * len(free(0)) + free(i).index(axis)


def _gather(eqn, i, axis):
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    out, shape = len(_shape(eqn.outvars[0])), _shape(eqn.invars[0])
    batch = [o for o in range(out) if o not in d.offset_dims]
    if i == 1:
        return batch[axis] if axis < len(batch) else None
    if axis in d.operand_batching_dims:
        pair = list(d.operand_batching_dims).index(axis)
        return batch[d.start_indices_batching_dims[pair]]
    if axis in d.collapsed_slice_dims or sizes[axis] != shape[axis]:
        return None
    gone = {*d.collapsed_slice_dims, *d.operand_batching_dims}
    return d.offset_dims[[a for a in range(len(shape)) if a not in gone].index(axis)]


def _scatter(eqn, i, axis):
    if i == 0:
        return axis
    d, shape = eqn.params["dimension_numbers"], _shape(eqn.invars[0])
    updates = _shape(eqn.invars[2])
    if i == 2 and axis in d.update_window_dims:
        gone = {*d.inserted_window_dims, *d.operand_batching_dims}
        kept = [a for a in range(len(shape)) if a not in gone]
        place = kept[list(d.update_window_dims).index(axis)]
        return place if shape[place] == updates[axis] else None
    if i == 2:
        outer = [u for u in range(len(updates)) if u not in d.update_window_dims]
        axis = outer.index(axis)
    if axis not in d.scatter_indices_batching_dims:
        return None
    pair = list(d.scatter_indices_batching_dims).index(axis)
    return d.operand_batching_dims[pair]


_RULES: dict[str, Callable] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _removes("dimensions"),
    "stack": _stack,
    "unstack": _removes("axis"),
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "concatenate": _avoids("dimension"),
    "rev": _avoids("dimensions"),
    "sort": _avoids("dimension"),
    "split": _avoids("axis"),
    "dot_general": _dot_general,
    "gather": _gather,
    **{
        f"reduce_{name}": _removes("axes")
        for name in ("sum", "prod", "max", "min", "and", "or", "xor")
    },
    **{name: _removes("axes") for name in ("argmax", "argmin")},
    **{f"cum{name}": _avoids("axis") for name in ("sum", "prod", "max", "min")},
    "cumlogsumexp": _avoids("axis"),
    **{
        name: _leading
        for name in (
            "random_bits",
            "random_split",
            "random_wrap",
            "random_unwrap",
            "bitcast_convert_type",
        )
    },
}
