"""One client's work as a jaxpr, and its transformations, by public JAX alone.

``linearize`` splits ``f`` into ``f_fwd: x -> (y, r)`` and ``f_lin: (r, dx) -> dy``;
``transpose`` turns a linear ``f_lin`` into ``(r, dy') -> dx'``; ``batch`` is ``vmap``.
Each result is a jaxpr of one client's work again, which ``fad_map`` carries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._compat import (
    ClosedJaxpr,
    Literal,
    ShapedArray,
    dce,
    depends_on,
    jaxpr_as_fun,
    make_jaxpr,
    shape_struct,
)

Mask = Sequence[bool]


def pick(mask: Mask, values: Sequence[Any]) -> list[Any]:
    """Return the values whose mask is on."""
    return [v for m, v in zip(mask, values, strict=True) if m]


def skip(mask: Mask, values: Sequence[Any]) -> list[Any]:
    """Return the values whose mask is off."""
    return [v for m, v in zip(mask, values, strict=True) if not m]


def merge(mask: Mask, on: Sequence[Any], off: Sequence[Any]) -> list[Any]:
    """Interleave: the inverse of ``pick`` and ``skip``."""
    ons, offs = iter(on), iter(off)
    return [next(ons) if m else next(offs) for m in mask]


class Linearized(NamedTuple):
    """A client function split into values with residuals, and its linear part."""

    fwd: ClosedJaxpr  # x -> (y, the residuals not found elsewhere)
    lin: ClosedJaxpr  # (residuals, used tangents) -> tangents of the live outputs
    residuals: tuple[tuple[bool, int], ...]  # (is an input of fwd, its position)
    used_tangents: tuple[bool, ...]  # of the live inputs
    live_outputs: tuple[bool, ...]


def linearize(closed: ClosedJaxpr, live: Mask, *, remat: bool) -> Linearized:
    """Split ``closed`` at the inputs marked ``live``, those with a tangent.

    With ``remat`` the residuals are inputs only, and the linear part recomputes the
    rest behind XLA's barrier (``jax.checkpoint``).
    """
    f = jax.checkpoint(jaxpr_as_fun(closed)) if remat else jaxpr_as_fun(closed)
    smooth = [jnp.issubdtype(a.dtype, jnp.inexact) for a in closed.out_avals]
    structure = []

    def forward(*args):
        def g(*x):
            outs = f(*merge(live, x, skip(live, args)))
            return pick(smooth, outs), skip(smooth, outs)

        y, lin, rest = jax.linearize(g, *pick(live, args), has_aux=True)
        residuals, treedef = jax.tree.flatten(lin)
        structure.append(treedef)
        return merge(smooth, y, rest) + residuals

    fwd = make_jaxpr(forward, closed.in_avals)
    r_avals = fwd.out_avals[len(smooth) :]
    t_avals = [a.to_tangent_aval() for a in pick(live, closed.in_avals)]

    def linear(*args):
        residuals, tangents = args[: len(r_avals)], args[len(r_avals) :]
        return jax.tree.unflatten(structure[-1], residuals)(*tangents)

    lin = make_jaxpr(linear, [*r_avals, *t_avals])
    live_out = depends_on(
        lin.jaxpr, [i >= len(r_avals) for i in range(len(lin.in_avals))]
    )
    lin, used = dce(lin, live_out)
    fwd, sources = _forward_residuals(fwd, len(smooth), used[: len(r_avals)])
    live_outputs = merge(smooth, live_out, [False] * smooth.count(False))
    return Linearized(
        fwd, lin, sources, tuple(used[len(r_avals) :]), tuple(live_outputs)
    )


def _forward_residuals(
    fwd: ClosedJaxpr, num_outputs: int, used: Mask
) -> tuple[ClosedJaxpr, tuple[tuple[bool, int], ...]]:
    """Let ``fwd`` return only residuals that are no input and no output of it yet.

    Without this a rematerialised map keeps one copy of a broadcast model per client.
    """
    inputs, outputs = list(fwd.jaxpr.invars), list(fwd.jaxpr.outvars)
    returned = outputs[:num_outputs]
    keep, sources = [True] * num_outputs, []
    for var, is_used in zip(outputs[num_outputs:], used, strict=True):
        place = None
        if is_used and not isinstance(var, Literal):
            place = _position(inputs, var, True) or _position(returned, var, False)
        keep.append(is_used and place is None)
        if is_used:
            sources.append(place or (False, len(returned)))
        if keep[-1]:
            returned.append(var)
    return dce(fwd, keep, keep_inputs=True)[0], tuple(sources)


def _position(
    variables: list[Any], var: Any, is_input: bool
) -> tuple[bool, int] | None:
    where = [i for i, v in enumerate(variables) if v is var]
    return (is_input, where[0]) if where else None


def transpose(
    closed: ClosedJaxpr, linear: Mask, live: Mask
) -> tuple[ClosedJaxpr, list[bool], list[bool]]:
    """Transpose ``closed`` in its ``linear`` inputs, for the ``live`` outputs.

    Returns:
        The jaxpr ``(residuals, live cotangents) -> cotangents``; which of the
        residuals and cotangents it takes; which linear inputs get a cotangent.
    """
    f = jaxpr_as_fun(closed)
    x_avals = [shape_struct(a) for a in pick(linear, closed.in_avals)]
    r_avals = skip(linear, closed.in_avals)
    ct_avals = [a.to_ct_aval() for a in pick(live, closed.out_avals)]

    def transposed(*args):
        residuals, cts = args[: len(r_avals)], args[len(r_avals) :]

        def g(*x):
            return pick(live, f(*merge(linear, x, residuals)))

        return list(jax.linear_transpose(g, *x_avals)(list(cts)))

    out = make_jaxpr(transposed, [*r_avals, *ct_avals])
    is_ct = [i >= len(r_avals) for i in range(len(out.in_avals))]
    live_in = depends_on(out.jaxpr, is_ct)
    out, used = dce(out, live_in)
    return out, used, live_in


def batch(
    closed: ClosedJaxpr, batched: Mask, in_avals: Sequence[ShapedArray]
) -> tuple[ClosedJaxpr, list[bool]]:
    """``vmap`` over axis 0 of the inputs marked ``batched``, at their ``in_avals``.

    Returns:
        The batched jaxpr, and which outputs are batched (on axis 0); an output that
        no batched input reaches is computed once.
    """
    out_batched = depends_on(closed.jaxpr, batched)
    f = jax.vmap(
        jaxpr_as_fun(closed),
        in_axes=tuple(0 if b else None for b in batched),
        out_axes=[0 if b else None for b in out_batched],
    )
    return make_jaxpr(f, in_avals), out_batched
