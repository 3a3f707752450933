"""Reverse mode: one backward round per forward round, whatever the number of inputs.

The backward round broadcasts the cotangent of what the clients summed, and sums what
they answer. It needs the clients of the forward round again, with their intermediate
values kept (``remat=False``), or recomputed from the server's value, sent once more
(``remat=True``).
"""

from typing import Any

import jax

from fad.modes._arguments import Problem
from fad.modes._pullback import gradient_of, jacobian_of
from fad.placement import remat_in_scope


def pullback(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the function from its cotangent to the gradient, and aux."""
    with remat_in_scope(remat):
        value, pull, aux = jax.vjp(
            lambda x: task.fn(x, task.rest), task.chosen, has_aux=True
        )

    def back(cotangent):
        with remat_in_scope(remat):
            return pull(cotangent)[0]

    return value, back, aux


def jacobian(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the Jacobian per output and argument, and the auxiliary."""
    return jacobian_of(pullback(task, remat=remat), task)


def grad(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return a scalar's value, its gradient, and the auxiliary."""
    return gradient_of(pullback(task, remat=remat))
