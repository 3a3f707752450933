"""Gradient descent on the mean loss."""

from typing import Any

from fad.solvers._checks import check_choice, check_lr
from fad.solvers._clients import WEIGHTINGS, Weighting, mean_gradient, move
from fad.solvers._solver import Solver, make


def gradient_descent(lr: Any, *, weighting: Weighting = "uniform") -> Solver:
    """Descend along the mean of the clients' full gradients.

    ``y <- y - lr mean_i grad g_i(y)``, over all real rows of each client: one round and
    one step. Exact.

    Args:
        lr: The step size, a positive number or a real scalar array, ``[]``.
        weighting: Clients with real rows count one each, or by their real rows.

    Returns:
        The solver, without memory.

    Raises:
        FadError: If lr or weighting is not as above; when called, if y is not real, the
            cohort no ``AtClients`` of ``Batches``, or the loss not one per row.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> examples, mask = jnp.array([[[1.0]], [[3.0]]]), jnp.full((2, 1, 1), True)
        >>> cohort = fad.AtClients(fad.local.Batches(examples, mask, jnp.arange(2)))
        >>> square = lambda y, examples: (y - examples) ** 2
        >>> def after(lr):
        ...     solver = fad.solvers.gradient_descent(lr)
        ...     return solver.step(square, jnp.array(0.0), None, cohort, None)[0]
        >>> float(after(0.25)), float(jax.grad(after)(0.25))  # 2 lr mean(x)
        (1.0, 4.0)

    References:
        McMahan et al., Communication-Efficient Learning of Deep Networks from
        Decentralized Data, AISTATS 2017 (FedSGD).
    """
    call = "fad.solvers.gradient_descent"
    check_lr(call, "lr", lr)
    check_choice(call, "weighting", weighting, WEIGHTINGS)

    def step(loss, y, cohort, key):
        slope = mean_gradient(loss, y, cohort, key, weighting)
        return move(y, slope, -lr)

    return make(call, step, rounds=1)
