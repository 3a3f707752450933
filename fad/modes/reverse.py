"""Reverse mode: one backward round per forward round, whatever the number of inputs.

The backward round broadcasts the cotangent of what the clients summed, and sums what
they answer. It needs the clients of the forward round again, with their intermediate
values kept (``remat=False``), or recomputed from the server's value, sent once more
(``remat=True``).
"""

from typing import Any

import jax
import jax.numpy as jnp

from fad.modes._arguments import Problem
from fad.modes._basis import basis, split_rows
from fad.placement import remat_in_scope


def pullback(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the function from its cotangent to the gradient, and aux."""
    with remat_in_scope(bool(remat)):
        value, pull, aux = jax.vjp(
            lambda x: task.fn(x, task.rest), task.chosen, has_aux=True
        )

    def back(cotangent):
        with remat_in_scope(bool(remat)):
            return pull(cotangent)[0]

    return value, back, aux


def jacobian(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the Jacobian per output and argument, and the auxiliary."""
    value, back, aux = pullback(task, remat=remat)
    rows = jax.vmap(back)(basis(value))
    by_input = jax.tree.map(lambda r: split_rows(r, value), rows)
    inputs, outputs = jax.tree.structure(task.chosen), jax.tree.structure(value)
    return value, jax.tree.transpose(inputs, outputs, by_input), aux


def grad(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return a scalar's value, its gradient, and the auxiliary."""
    value, back, aux = pullback(task, remat=remat)
    return value, back(jnp.ones_like(value)), aux
