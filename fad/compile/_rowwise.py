"""Operations that act on each client's row alone, outside ``fad.map``.

A derivative puts a few of them between federated equations: it adds cotangents, fills
zeros, moves batch axes. They join the sweep, so that no ``[n, *s]`` array is made.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fad._compat import JaxprEqn, bind
from fad.compile._flatten import Eqn, shape_of

_ELEMENTWISE = frozenset(
    """abs add add_any and ceil clamp convert_element_type copy copy_p cos cosh div eq
    erf exp exp2 expm1 floor ge gt imag integer_pow is_finite le log log1p logistic lt
    max min mul ne neg not nextafter or pow real reduce_precision rem round rsqrt
    select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()
)


def rowwise(eqn: Eqn, n: int) -> Callable[..., Any] | None:
    """Return what one client does in an equation over ``[n, *s]`` values, or None.

    The function takes one client's operands; operands that have no client axis
    (scalars) come as they are.
    """
    if len(eqn.outs) != 1 or shape_of(eqn.outs[0])[:1] != (n,):
        return None
    name, params = eqn.name, eqn.eqn.params
    if name in _ELEMENTWISE:
        shape = shape_of(eqn.outs[0])
        if all(shape_of(ref) in ((), shape) for ref in eqn.ins):
            return _elementwise(eqn.eqn)
        return None
    if shape_of(eqn.ins[0])[:1] != (n,):
        return None
    test = _STRUCTURAL.get(name)
    if test is None or not test(params):
        return None
    patch = {k: (1, *params[k][1:]) for k in ("shape", "new_sizes") if k in params}
    return _on_one_row(eqn.eqn, {**params, **patch})


def _leads(dims: Sequence[int] | None) -> bool:
    return dims is not None and len(dims) > 0 and dims[0] == 0


# Name -> whether these parameters leave the leading axis alone.
_STRUCTURAL: dict[str, Callable[[dict[str, Any]], bool]] = {
    "broadcast_in_dim": lambda p: _leads(p["broadcast_dimensions"]),
    "reduce_max": lambda p: 0 not in p["axes"],
    "reduce_min": lambda p: 0 not in p["axes"],
    "reduce_sum": lambda p: 0 not in p["axes"],
    "reshape": lambda p: p["dimensions"] is None and len(p["new_sizes"]) > 0,
    "squeeze": lambda p: 0 not in p["dimensions"],
    "transpose": lambda p: _leads(p["permutation"]),
}


def _elementwise(eqn: JaxprEqn) -> Callable[..., Any]:
    return lambda *rows: bind(eqn, rows)[0]


def _on_one_row(eqn: JaxprEqn, params: dict[str, Any]) -> Callable[..., Any]:
    one = eqn.replace(params=params)
    return lambda row, *rest: jax.numpy.squeeze(bind(one, (row[None], *rest))[0], 0)
