"""FedLin: corrected local steps, each client's of its own size."""

from typing import Any

from fad.solvers._checks import check_choice, check_lr, check_passes
from fad.solvers._clients import WEIGHTINGS, Weighting, mean_gradient
from fad.solvers._corrected_round import corrected_round
from fad.solvers._solver import Solver, make


def fedlin(lr: Any, *, weighting: Weighting = "uniform", passes: int = 1) -> Solver:
    """Correct the clients' local steps, and let each go as far as the others.

    As ``fad.solvers.svrg``, with the step ``lr / tau_i`` at a client of ``tau_i`` local
    steps, its batches with real rows. A client's part in a step then does not depend on
    how much it computes. Exact, with minibatches too, in two rounds.

    Args:
        lr: The step size of all local steps together, a positive number or a real
            scalar array, ``[]``.
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
        >>> solver = fad.solvers.fedlin(0.25)
        >>> float(solver.step(square, jnp.array(0.0), None, cohort, None)[0])
        1.0

    References:
        Mitra et al., Linear Convergence in Federated Learning: Tackling Client
        Heterogeneity and Sparse Gradients, NeurIPS 2021 (without sparsification).
    """
    call = "fad.solvers.fedlin"
    check_lr(call, "lr", lr)
    check_choice(call, "weighting", weighting, WEIGHTINGS)
    passes = check_passes(call, passes)

    def step(loss, y, cohort, key):
        q = mean_gradient(loss, y, cohort, key, weighting)
        options = {"lr": lr, "weighting": weighting, "passes": passes}
        return corrected_round(loss, y, q, cohort, key, **options, divide_lr=True)

    return make(call, step, rounds=2)
