"""Counting the floating-point operations of one client's work."""

import math
from typing import Any

import jax.numpy as jnp

from fad._compat import Jaxpr, JaxprEqn, run_jaxprs, scan_parts

# Moving, reshaping or choosing numbers is no operation on them.
_FREE = frozenset(
    """broadcast_in_dim reshape squeeze transpose slice dynamic_slice concatenate gather
    dynamic_update_slice convert_element_type bitcast_convert_type reduce_precision copy
    copy_p iota pad rev select_n stop_gradient split expand_dims scatter pvary name real
    imag empty device_put optimization_barrier sharding_constraint reshard""".split()
)


def count_flops(jaxpr: Jaxpr) -> int:
    """Return the floating-point operations of a jaxpr.

    A multiply-add counts two, other arithmetic on floats one per element it makes (a
    reduction one per element it reads); a scan counts its body times its length, a cond
    its dearest branch, a while its body once, as its length is not known, and a linear
    solve its solver.
    """
    return sum(map(eqn_flops, jaxpr.eqns))


def eqn_flops(eqn: JaxprEqn) -> int:
    """Return the floating-point operations of an equation."""
    name = eqn.primitive.name
    if name == "scan":
        part = scan_parts(eqn)
        return part.length * count_flops(part.body.jaxpr)
    inner = run_jaxprs(eqn)
    if name == "fad_map":
        return eqn.params["clients"] * sum(map(count_flops, inner))
    if name == "cond":
        return max(map(count_flops, inner))
    if name in _FREE:
        return 0
    if name.startswith(("reduce", "cum", "scatter", "sort")):
        return _floats(eqn.invars[-1 if name.startswith("scatter") else 0])
    if inner:
        return sum(map(count_flops, inner))
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        shape = _shape(eqn.invars[0])
        return 2 * _size(eqn.outvars[0]) * math.prod(shape[i] for i in contract)
    if name == "conv_general_dilated":
        dims = eqn.params["dimension_numbers"].rhs_spec
        kernel = _shape(eqn.invars[1])
        per_output = math.prod(kernel[i] for i in dims[1:])
        return 2 * _size(eqn.outvars[0]) * per_output
    return sum(map(_floats, eqn.outvars))


def _floats(atom: Any) -> int:
    dtype = getattr(atom.aval, "dtype", None)
    return _size(atom) if dtype and jnp.issubdtype(dtype, jnp.inexact) else 0


def _size(atom: Any) -> int:
    return math.prod(_shape(atom))


def _shape(atom: Any) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())
