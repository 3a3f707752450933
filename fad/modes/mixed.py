"""Mixed mode: forward across the wire, reverse inside the clients of the last round.

The rounds before the last send tangents along, as forward mode does. In the last round
no tangent is sent: each client returns its gradient with respect to what it was sent,
together with its value, and the server contracts the sum with the tangents it holds,

    dz/dx = sum_s <dz/ds, ds/dx>,

``s`` what the last round starts from. There is no backward round and no client state.
The last round sends down what the program sends and up one gradient more; with many
inputs that is far less than their tangents.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad._compat import make_jaxpr
from fad.modes._arguments import Problem
from fad.modes._basis import basis, is_real, split_rows
from fad.modes._cut import Cut, cut
from fad.modes._pullback import gradient_of, jacobian_of
from fad.placement import remat_in_scope
from fad.plan._plan import input_values
from fad.primitives._client_work import merge, pick, skip


def pullback(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the function from its cotangent to the gradient, and aux.

    Raises:
        PlanError: If the last round cannot be separated from those before it.
    """
    halves, x, inputs, structure = split(task, remat)

    def push(t):
        crossed, tangents = jax.jvp(lambda *x: halves.before(inputs(x)), x, t)
        return crossed, [
            d for c, d in zip(crossed, tangents, strict=True) if is_real(c)
        ]

    crossed, rows = jax.vmap(push, out_axes=(None, 0))(basis(x))
    real = [is_real(c) for c in crossed]

    def last_round(moved, x):
        outs = halves.after(merge(real, moved, skip(real, crossed)), inputs(x))
        return jax.tree.unflatten(structure[0], outs)

    value, pull, aux = jax.vjp(last_round, pick(real, crossed), x, has_aux=True)
    moving = pick(real, halves.moving)

    def back(cotangent):
        on_crossed, on_x = pull(cotangent)
        through = _contract(rows, on_crossed, moving, x)
        total = jax.tree.map(jnp.add, through, on_x)
        return jax.tree.structure(task.chosen).unflatten(total)

    return value, back, aux


def split(
    task: Problem, remat: bool | None
) -> tuple[Cut, list[Any], Callable, list[Any]]:
    """Cut it; return ``x``, ``x -> all inputs``, and the outputs' structure."""
    given = (task.chosen, task.rest)
    leaves, treedef = jax.tree.flatten(given)
    leaves = [jnp.asarray(v) for v in leaves]
    count = len(jax.tree.leaves(task.chosen))
    structure: list[Any] = []

    def flat(*xs):
        outs, out_tree = jax.tree.flatten(task.fn(*treedef.unflatten(xs)))
        structure[:] = [out_tree]
        return outs

    with remat_in_scope(remat is not False):
        closed = make_jaxpr(flat, [jax.typeof(v) for v in leaves])
    live = [i < count for i in range(len(leaves))]
    halves = cut(closed, input_values(given), live)
    return halves, leaves[:count], lambda x: [*x, *leaves[count:]], structure


def jacobian(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the Jacobian per output and argument, and the auxiliary."""
    return jacobian_of(pullback(task, remat=remat), task)


def grad(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return a scalar's value, its gradient, and the auxiliary."""
    return gradient_of(pullback(task, remat=remat))


def _contract(
    rows: Sequence[Any], cotangents: Sequence[Any], moving: Sequence[bool], x: Any
) -> Any:
    """Return ``sum_s <dz/ds, ds/dx>``, in the shapes of ``x``."""
    pairs = zip(pick(moving, rows), pick(moving, cotangents), strict=True)
    total: Any = 0.0
    for row, cotangent in pairs:
        total = total + jnp.tensordot(row, cotangent, cotangent.ndim)
    if not any(moving):
        return jax.tree.map(jnp.zeros_like, x)
    cut = split_rows(total, x)
    return jax.tree.map(lambda g, v: g.astype(v.dtype), cut, x)
