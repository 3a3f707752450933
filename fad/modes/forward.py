"""Forward mode: tangents ride with the values, and no round is added.

Every message carries the value and its ``k`` tangents, so traffic is ``1 + k`` times
the program's; clients keep nothing between rounds and need not come back. A client
recomputes its work for the tangents instead of keeping intermediate values, which the
tangents would all hold at once.
"""

from typing import Any

import jax

from fad.modes._arguments import Problem
from fad.modes._basis import basis, columns
from fad.placement import remat_in_scope


def jacobian(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the Jacobian per output and argument, and the auxiliary."""

    def push(t):
        return jax.jvp(
            lambda x: task.fn(x, task.rest), (task.chosen,), (t,), has_aux=True
        )

    with remat_in_scope(remat is not False):
        value, rows, aux = jax.vmap(push, out_axes=(None, 0, None))(basis(task.chosen))
    return value, jax.tree.map(lambda r: columns(r, task.chosen), rows), aux


def grad(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return a scalar's value, its gradient, and the auxiliary."""
    return jacobian(task, remat=remat)
