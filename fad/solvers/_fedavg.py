"""Federated averaging, as a solver."""

from typing import Any

from fad.local import train
from fad.primitives import map, weighted_mean
from fad.solvers._checks import check_choice, check_lr, check_passes
from fad.solvers._clients import WEIGHTINGS, Weighting, client, move, repeat, sgd
from fad.solvers._solver import Solver, make


def fedavg(lr: Any, *, weighting: Weighting = "uniform", passes: int = 1) -> Solver:
    """Average the models of clients that run SGD on their own batches.

    Each client takes ``y_i <- y_i - lr grad g_i(y_i; b)`` once per batch with real
    rows, from y, and y becomes the mean of the ``y_i``: one round.

    It is *not* exact: where clients differ and take more than one step, they drift
    apart, and the steps lead to a fixed point that moves with lr (of a quadratic,
    ``fad.data.Quadratics.fedavg_fixed_point``).

    Args:
        lr: The local step size, a positive number or a real scalar array, ``[]``.
        weighting: Clients with real rows count one each, or by their real rows.
        passes: How often clients go through their batches in a step, at least 1, in
            the same order; full gradients take one pass.

    Returns:
        The solver, without memory.

    Raises:
        FadError: As ``fad.solvers.gradient_descent``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> examples, mask = jnp.array([[[1.0]], [[3.0]]]), jnp.full((2, 1, 1), True)
        >>> cohort = fad.AtClients(fad.local.Batches(examples, mask, jnp.arange(2)))
        >>> square = lambda y, examples: (y - examples) ** 2
        >>> solver = fad.solvers.fedavg(0.25)
        >>> float(solver.step(square, jnp.array(0.0), None, cohort, None)[0])
        1.0

    References:
        McMahan et al., Communication-Efficient Learning of Deep Networks from
        Decentralized Data, AISTATS 2017 (Algorithm 1).
    """
    call = "fad.solvers.fedavg"
    check_lr(call, "lr", lr)
    check_choice(call, "weighting", weighting, WEIGHTINGS)
    passes = check_passes(call, passes)

    def step(loss, y, cohort, key):
        def local_steps(batches):
            own = client(repeat(batches, passes), key, weighting)
            local = train(y, own.batches, loss=loss, optimizer=sgd(lr), key=own.key)
            return local.delta, own.weight

        return move(y, weighted_mean(*map(local_steps, cohort)), 1)

    return make(call, step, rounds=1)
