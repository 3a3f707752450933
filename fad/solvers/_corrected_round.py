"""One round of local steps that a common direction corrects."""

from typing import Any

import jax
import jax.numpy as jnp

from fad.local import Batches, train
from fad.placement import AtClients, program
from fad.primitives import map, weighted_mean
from fad.solvers._checks import (
    check_choice,
    check_cohort,
    check_like_y,
    check_lr,
    check_passes,
    check_y,
)
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
from fad.solvers._solver import Loss


def corrected_round(
    loss: Loss,
    y: Any,
    q: Any,
    cohort: AtClients[Batches],
    key: Any,
    *,
    lr: Any,
    weighting: Weighting = "uniform",
    passes: int = 1,
    divide_lr: bool = False,
) -> Any:
    """Take local steps corrected to start along a common direction q, and average.

    Each client takes ``y_i <- y_i - lr [grad g_i(y_i; b) - grad g_i(y; b) + q]`` once
    per batch b with real rows, from y; the result is the mean of the ``y_i``. Both
    gradients of a step see the same batch and the same key, so that a first step is
    ``-lr q`` exactly, and where q is 0 nothing moves. With the mean gradient at y as q
    this is a step of ``fad.solvers.svrg``; any other estimate of a gradient at y will
    do, such as a hypergradient. One round: y and q go down, y comes up.

    Args:
        loss: ``loss(y, examples) -> [batch]``; with ``key`` a third argument.
        y: A pytree of real arrays.
        q: The direction, of y's structure, shapes and dtypes.
        cohort: The clients' batches.
        key: The round's key, for a random loss, or None.
        lr: The local step size, a positive number or a real scalar array, ``[]``.
        weighting: Clients with real rows count one each, or by their real rows.
        passes: How often clients go through their batches, at least 1, in the same
            order.
        divide_lr: Divide lr by the client's own number of steps, as
            ``fad.solvers.fedlin`` does.

    Returns:
        The next y.

    Raises:
        FadError: As ``fad.solvers.gradient_descent``, or if q is not like y.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> examples, mask = jnp.array([[[1.0]], [[3.0]]]), jnp.full((2, 1, 1), True)
        >>> cohort = fad.AtClients(fad.local.Batches(examples, mask, jnp.arange(2)))
        >>> square = lambda y, examples: (y - examples) ** 2
        >>> y, q = jnp.array(0.0), jnp.array(-4.0)
        >>> float(fad.solvers.corrected_round(square, y, q, cohort, None, lr=0.25))
        1.0

    References:
        Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and Compositional
        Optimization, ICML 2022 (FedInn and FedOut).
    """
    call = "fad.solvers.corrected_round"
    check_lr(call, "lr", lr)
    check_choice(call, "weighting", weighting, WEIGHTINGS)
    passes = check_passes(call, passes)
    check_cohort(call, cohort)
    y = check_y(call, y)
    q = check_like_y(call, "q", q, y)

    def corrected(p, rows, *key):
        batch = Batches(*jax.tree.map(lambda x: x[None], rows), client=None)
        at_y = gradient(loss, y, batch, key[0] if key else None)
        slope = jax.tree.map(jnp.subtract, q, at_y)
        return tilt(loss(p, rows[0], *key), slope, p)

    def corrected_steps(batches):
        own = client(repeat(batches, passes), key, weighting)
        inside = own.batches
        steps = jnp.maximum(own.steps, 1) if divide_lr else 1
        # At y the two gradients are one: a first step needs none.
        first = jax.tree.map(lambda a: _first_step(a, lr, steps, inside.mask[:1]), q)
        rows = inside._replace(examples=(inside.examples, inside.mask))
        examples, mask = jax.tree.map(lambda a: a[1:], (rows.examples, rows.mask))
        local = train(
            jax.tree.map(jnp.add, y, first),
            rows._replace(examples=examples, mask=mask),
            loss=corrected,
            optimizer=sgd(lr, divisor=steps),
            key=own.key,
        )
        return jax.tree.map(jnp.add, first, local.delta), own.weight

    @program
    def run(cohort):
        return weighted_mean(*map(corrected_steps, cohort))

    return move(y, run(cohort), 1)


def _first_step(q: jax.Array, lr: Any, steps: Any, mask: jax.Array) -> jax.Array:
    """Return ``-(lr / steps) q``, or zeros where no row of the first batch is real."""
    step = -jnp.asarray(lr, q.dtype) / jnp.asarray(steps, q.dtype) * q
    return jnp.where(mask.any(), step, jnp.zeros_like(q))
