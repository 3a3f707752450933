"""Where the atoms of an equation's inputs stand in its outputs: a rule a primitive.

A rule joins the atoms that number the same things, pins those of which the equation
tells the entries apart (it slices, shifts, sorts, counts or indexes them), and returns
its outputs' axes. What has no rule pins all that it touches: then fewer units are
found, never wrong ones.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fad._compat import JaxprEqn
from fad.submodels._atoms import (
    Axis,
    Value,
    axis,
    contract,
    pin,
    regroup,
    unify,
    value,
)

# Every output element is made of the elements at the same place of the inputs.
_ELEMENTWISE = """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e
    bessel_i1e bitcast_convert_type cbrt ceil clamp clz complex conj
    convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp
    exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma log
    log1p log2 logistic lt lt_to max min mul ne neg nextafter not one_minus_square
    optimization_barrier or polygamma population_count pow random_fold_in real
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient
    sub tan tanh xor zeta"""
_REDUCTIONS = """reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor"""
_CUMULATIVE = "cumlogsumexp cummax cummin cumprod cumsum"


def follow(eqn: JaxprEqn, ins: Sequence[Value]) -> Sequence[Value]:
    """Return the axes of an equation's outputs, by its primitive's rule."""
    rule = _RULES.get(eqn.primitive.name, unknown)
    return rule(eqn, ins)


def shape_of(var: Any) -> tuple[int, ...]:
    """Return the shape of a variable or literal."""
    return getattr(var.aval, "shape", ())


def unknown(eqn: JaxprEqn, ins: Sequence[Value]) -> Sequence[Value]:
    """Pin all that an equation touches."""
    for operand in ins:
        pin(*operand)
    return [value(shape_of(out), pinned=True) for out in eqn.outvars]


def same(values: Sequence[Value]) -> Value:
    """Say that values of one shape have the same axes; return one of them."""
    for other in values[1:]:
        for a, b in zip(values[0], other, strict=True):
            unify(a, b)
    return values[0]


def _elementwise(eqn, ins):
    """Scalars and axes of length 1 stand beside longer ones."""
    if eqn.primitive.name == "bitcast_convert_type" and _shape(eqn) != _shape(eqn, 0):
        return unknown(eqn, ins)
    if eqn.primitive.name == "optimization_barrier":
        return list(ins)
    arrays = [operand for operand in ins if operand]
    out = []
    for axes in zip(*arrays, strict=True):
        full = [one for one in axes if one] or [()]
        out.append(functools.reduce(unify, full))
    return [out] * len(eqn.outvars)


def _shape(eqn, operand=None) -> tuple[int, ...]:
    return shape_of(eqn.outvars[0] if operand is None else eqn.invars[operand])


def _only(eqn, ins, kept: Callable[[int], bool], operand=0) -> list[Axis]:
    """Pass the axes that are kept; pin the others, whose outputs are pinned too."""
    out = []
    for d, (before, size) in enumerate(zip(ins[operand], _shape(eqn), strict=True)):
        if not kept(d):
            pin(before)
        out.append(before if kept(d) else axis(size, pinned=True))
    return out


def _reduction(eqn, ins):
    axes = eqn.params["axes"]
    if eqn.primitive.name in ("argmax", "argmin"):
        pin(*(ins[0][d] for d in axes))
    return [[a for d, a in enumerate(ins[0]) if d not in axes]]


def _along(eqn, ins):
    """Running sums, sorting, reversing: along some axes entries are told apart."""
    p = eqn.params
    axes = p.get("dimensions") or (p["dimension" if "dimension" in p else "axis"],)
    out = _only(eqn, [same(ins)], lambda d: d not in axes)
    return [out] * len(eqn.outvars)


def _broadcast(eqn, ins):
    places = dict(zip(eqn.params["broadcast_dimensions"], ins[0], strict=True))
    sizes = _shape(eqn)
    return [[places.get(d) or axis(size) for d, size in enumerate(sizes)]]


def _reshape(eqn, ins):
    return [regroup(ins[0], _shape(eqn))]


def _transpose(eqn, ins):
    return [[ins[0][d] for d in eqn.params["permutation"]]]


def _iota(eqn, ins):
    del ins
    at = eqn.params["dimension"]
    return [[axis(n, pinned=d == at) for d, n in enumerate(_shape(eqn))]]


def _random_bits(eqn, ins):
    shape = _shape(eqn)
    return [[*ins[0], *value(shape[len(ins[0]) :])]]


def _slice(eqn, ins):
    """A slice of a whole axis passes it, be it dynamic or static."""
    return [_only(eqn, ins, lambda d: _shape(eqn)[d] == _shape(eqn, 0)[d])]


def _dynamic_update(eqn, ins):
    operand, update = ins[:2]
    for d, (a, b) in enumerate(zip(operand, update, strict=True)):
        if _shape(eqn, 0)[d] == _shape(eqn, 1)[d]:
            unify(a, b)
        else:
            pin(a, b)
    return [operand]


def _pad(eqn, ins):
    return [_only(eqn, ins, lambda d: not any(eqn.params["padding_config"][d]))]


def _reduce_window(eqn, ins):
    p = eqn.params
    whole = [
        p["window_dimensions"],
        p["window_strides"],
        p["base_dilation"],
        [1 + sum(map(abs, pads)) for pads in p["padding"]],
    ]
    return [_only(eqn, ins, lambda d: all(row[d] == 1 for row in whole))]


def _concatenate(eqn, ins):
    """Equal pieces make a product: (piece, what is in a piece)."""
    at = eqn.params["dimension"]
    pieces = [operand[at] for operand in ins]
    others = [[*operand[:at], *operand[at + 1 :]] for operand in ins]
    out = [*same(others)]
    if len({shape_of(var)[at] for var in eqn.invars}) == 1:
        inner = functools.reduce(unify, pieces)
        joined = (*axis(len(ins), pinned=True), *inner)
    else:
        pin(*pieces)
        joined = axis(_shape(eqn)[at], pinned=True)
    return [[*out[:at], joined, *out[at:]]]


def _split(eqn, ins):
    at, sizes = eqn.params["axis"], eqn.params["sizes"]
    if len(set(sizes)) == 1:
        inner = axis(int(sizes[0]))
        unify(ins[0][at], (*axis(len(sizes), pinned=True), *inner))
        pieces = [inner] * len(sizes)
    else:
        pin(ins[0][at])
        pieces = [axis(int(size), pinned=True) for size in sizes]
    return [[*ins[0][:at], piece, *ins[0][at + 1 :]] for piece in pieces]


def _stack(eqn, ins):
    at = eqn.params["axis"]
    out = same(ins)
    return [[*out[:at], axis(len(ins), pinned=True), *out[at:]]]


def _unstack(eqn, ins):
    at = eqn.params["axis"]
    pin(ins[0][at])
    return [[*ins[0][:at], *ins[0][at + 1 :]]] * len(eqn.outvars)


def _tile(eqn, ins):
    pairs = zip(eqn.params["reps"], ins[0], strict=True)
    return [[(*axis(times, pinned=True), *one) for times, one in pairs]]


def _dot(eqn, ins):
    """A batch axis (heads, experts) counts blocks of the model: it is pinned."""
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    for a, b in zip(left, right, strict=True):
        contract(unify(ins[0][a], ins[1][b]))
    for a, b in zip(left_batch, right_batch, strict=True):
        pin(unify(ins[0][a], ins[1][b]))
    free_left = [a for d, a in enumerate(ins[0]) if d not in (*left, *left_batch)]
    free_right = [a for d, a in enumerate(ins[1]) if d not in (*right, *right_batch)]
    return [[*(ins[0][d] for d in left_batch), *free_left, *free_right]]


def _conv(eqn, ins):
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        return unknown(eqn, ins)
    (batch, features, *places), (channels, into, *kernel) = numbers[:2]
    contract(unify(ins[0][features], ins[1][into]))
    pin(*(ins[0][d] for d in places), *(ins[1][d] for d in kernel))
    out = value(_shape(eqn), pinned=True)
    out[numbers[2][0]], out[numbers[2][1]] = ins[0][batch], ins[1][channels]
    return [out]


def _gather(eqn, ins):
    """Axes taken whole stand in the slices, those of the indices around them."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = ins
    paired = numbers.operand_batching_dims
    for a, b in zip(paired, numbers.start_indices_batching_dims, strict=True):
        unify(operand[a], indices[b])
    slices = []
    for d, (a, size) in enumerate(zip(operand, sizes, strict=True)):
        whole = size == _shape(eqn, 0)[d] and d not in numbers.start_index_map
        if not whole and d not in paired:
            pin(a)
        if d not in numbers.collapsed_slice_dims and d not in paired:
            slices.append(a if whole else axis(size, pinned=True))
    pin(indices[-1])
    rows, slices = iter(indices[:-1]), iter(slices)
    places = range(len(_shape(eqn)))
    return [[next(slices if d in numbers.offset_dims else rows) for d in places]]


def _squeeze(eqn, ins):
    dropped = eqn.params["dimensions"]
    return [[a for d, a in enumerate(ins[0]) if d not in dropped]]


_RULES: dict[str, Callable[[JaxprEqn, Sequence[Value]], Sequence[Value]]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys((*_REDUCTIONS.split(), "argmax", "argmin"), _reduction),
    **dict.fromkeys((*_CUMULATIVE.split(), "sort", "rev"), _along),
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), _reduce_window),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "dynamic_slice": _slice,
    "dynamic_update_slice": _dynamic_update,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "random_bits": _random_bits,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
