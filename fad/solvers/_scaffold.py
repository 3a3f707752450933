"""SCAFFOLD: local steps corrected by control variates that clients keep."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fad.local import train
from fad.primitives import map, weighted_mean
from fad.solvers._checks import check_choice, check_lr, check_passes
from fad.solvers._clients import (
    WEIGHTINGS,
    Weighting,
    client,
    gradient,
    move,
    repeat,
    sgd,
    tilt,
)
from fad.solvers._control_variates import (
    ControlVariates,
    check_memory,
    mean_local_gradient,
    renewal,
    zeros,
)
from fad.solvers._solver import Solver, make_with_memory


def scaffold(
    lr: Any,
    *,
    server_lr: Any = 1.0,
    option: Literal["I", "II"] = "II",
    weighting: Weighting = "uniform",
    passes: int = 1,
) -> Solver:
    """Correct the clients' local steps by the gradients of the step before.

    Each client takes ``y_i <- y_i - lr [grad g_i(y_i; b) - c_i + c]`` once per batch
    with real rows, from y, and renews its control variate; one round with two sums:
    ``y <- y + server_lr mean_i(y_i - y)`` and ``c <- mean_i c_i``. Exact where each
    local step sees all of a client's rows; batches that differ leave it near the
    minimiser, since ``c_i`` is of no batch in particular.

    The memory holds one ``c_i`` for each slot of the cohort, zero at first: every step
    needs the same clients in the same order. A client without real rows keeps its own.

    Args:
        lr: The local step size, a positive number or a real scalar array, ``[]``.
        server_lr: The same for the server's step.
        option: What the new ``c_i`` is: "I" its full gradient at y, for one more pass
            over its rows, or "II" the mean of the gradients of its local steps,
            ``c_i - c + (y - y_i) / (tau_i lr)``.
        weighting: Clients with real rows count one each, or by their real rows.
        passes: How often clients go through their batches in a step, at least 1, in
            the same order; full gradients take one pass.

    Returns:
        The solver; its memory is a ``ControlVariates``.

    Raises:
        FadError: As ``fad.solvers.gradient_descent``, if option is unknown, or if the
            memory is not that of ``init``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> examples, mask = jnp.array([[[1.0]], [[3.0]]]), jnp.full((2, 1, 1), True)
        >>> cohort = fad.AtClients(fad.local.Batches(examples, mask, jnp.arange(2)))
        >>> square = lambda y, examples: (y - examples) ** 2
        >>> solver, y = fad.solvers.scaffold(0.25), jnp.array(0.0)
        >>> y, memory = solver.step(square, y, solver.init(y, cohort), cohort, None)
        >>> float(y), float(memory.server)  # the mean gradient at 0
        (1.0, -4.0)

    References:
        Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated
        Learning, ICML 2020 (Algorithm 1, all clients taking part).
    """
    call = "fad.solvers.scaffold"
    check_lr(call, "lr", lr)
    check_lr(call, "server_lr", server_lr)
    check_choice(call, "option", option, ("I", "II"))
    check_choice(call, "weighting", weighting, WEIGHTINGS)
    passes = check_passes(call, passes)

    def step(loss, y, memory, cohort, key):
        check_memory(call, memory)

        def local_steps(batches, c_i):
            once = client(batches, key, weighting)
            own = client(repeat(batches, passes), key, weighting)
            slope = jax.tree.map(jnp.subtract, memory.server, c_i)
            local = train(
                y,
                own.batches,
                loss=lambda p, *args: tilt(loss(p, *args), slope, p),
                optimizer=sgd(lr),
                key=own.key,
            )
            if option == "I":
                new = gradient(loss, y, once.batches, own.key)
            else:
                new = mean_local_gradient(slope, local.delta, lr, own.steps)
            change = renewal(new, c_i, own.steps)
            return (local.delta, change), jax.tree.map(jnp.add, c_i, change), own.weight

        changes, clients, weights = map(local_steps, cohort, memory.clients)
        delta, change = weighted_mean(changes, weights)
        server = jax.tree.map(jnp.add, memory.server, change)
        return move(y, delta, server_lr), ControlVariates(server, clients)

    return make_with_memory(call, zeros, step, rounds=1)
