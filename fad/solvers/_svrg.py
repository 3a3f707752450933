"""Federated SVRG: FedNest's inner iteration."""

from typing import Any

from fad.solvers._checks import check_choice, check_lr, check_passes
from fad.solvers._clients import WEIGHTINGS, Weighting, mean_gradient
from fad.solvers._corrected_round import corrected_round
from fad.solvers._solver import Solver, make


def svrg(lr: Any, *, weighting: Weighting = "uniform", passes: int = 1) -> Solver:
    """Correct the clients' local steps by the mean gradient.

    Two rounds: ``q = mean_i grad g_i(y)`` over all real rows, then
    ``fad.solvers.corrected_round`` with that q.

    Exact, with minibatches too. But a client's part in a step grows with its number of
    local steps, so that unequal ones want a smaller lr: of quadratics with Hessians
    ``A_i``, and ``A`` their mean, a step multiplies the distance to the minimiser by
    ``I - mean_i A_i^-1 (I - (I - lr A_i)^tau_i) A``, which may grow it where lr suits
    a single step. ``fad.solvers.fedlin`` divides lr by ``tau_i``.

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
        >>> solver = fad.solvers.svrg(0.25)
        >>> float(solver.step(square, jnp.array(0.0), None, cohort, None)[0])
        1.0

    References:
        Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and Compositional
        Optimization, ICML 2022 (FedInn); Konecny et al., Federated Optimization:
        Distributed Machine Learning for On-Device Intelligence, 2016 (FSVRG).
    """
    call = "fad.solvers.svrg"
    check_lr(call, "lr", lr)
    check_choice(call, "weighting", weighting, WEIGHTINGS)
    passes = check_passes(call, passes)

    def step(loss, y, cohort, key):
        q = mean_gradient(loss, y, cohort, key, weighting)
        options = {"lr": lr, "weighting": weighting, "passes": passes}
        return corrected_round(loss, y, q, cohort, key, **options)

    return make(call, step, rounds=2)
