"""Bilevel optimisation with all data at one place: the reference without federation.

One client has every client's examples, each row with the weight that it has in the
federated problem, so that it is the same problem: ``min_x f(x, y*(x))`` with ``y*(x) =
argmin_y g(x, y)``. A step is

    T times:  y <- y - lower_lr grad_y g(x, y)
    v = H^-1 grad_y f by conjugate gradients,  H = d^2 g / dy^2
    x <- x - upper_lr (grad_x f - J v)

after Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016. As
``inner_steps`` and ``terms`` grow, its hypergradient is exact.

It needs what federated learning is to avoid: clients' examples at the server. That is
``unsafe_gather``, and ``fad.check`` refuses it. Its rounds and bytes mean nothing.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._bilevel import subtract, times
from algorithms._lfednest import State
from algorithms._ranges import check_range
from fad.estimators import Bilevel, Split
from fad.local import Batches


def centralised_bilevel(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    lower_lr: float,
    upper_lr: float,
    inner_steps: int = 10,
    terms: int = 10,
) -> fad.Algorithm:
    """Build the centralised reference.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        lower_lr: The step of y, on all rows.
        upper_lr: The step of x.
        inner_steps: Steps T of y in a step of the algorithm.
        terms: Steps of conjugate gradients.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are ``upper_loss``, the norms ``hypergradient`` and ``lower_residual``,
        and ``linear_residual``, that of the linear system over its right-hand side.
    """
    solver = fad.solvers.gradient_descent(lower_lr, weighting="examples")
    estimator = fad.estimators.aid(
        at_one_place(problem), solver, steps=inner_steps, terms=terms
    )

    def init(key):
        for_x, for_y = jax.random.split(key)
        return State(init_x(for_x), init_y(for_y))

    def step(state, cohort, key):
        x, y = state
        alone = pooled(problem, cohort)
        start = estimator.init(x, y, alone)
        cohorts = jax.tree.map(lambda a: a[None], alone)
        found = estimator.estimate(x, start, cohorts, key)
        metrics = {
            "upper_loss": found.value,
            "hypergradient": optax.tree.norm(found.hypergradient),
            "lower_residual": found.report.lower,
            "linear_residual": found.report.linear,
        }
        x = subtract(x, times(upper_lr, found.hypergradient))
        return State(x, found.state.y), metrics

    return fad.Algorithm(init, step)


def at_one_place(problem: Bilevel) -> Bilevel:
    """Return the problem of the one client; its examples are ``(examples, weight)``."""

    def weighted(loss):
        def rows(x, y, examples, *key):
            losses = loss(x, y, examples[0], *key)
            return losses * examples[1].astype(losses.dtype)

        return rows

    upper, lower = weighted(problem.upper), weighted(problem.lower)
    return problem._replace(upper=upper, lower=lower, weighting="examples")


def pooled(problem: Bilevel, cohort: fad.AtClients[Split]) -> fad.AtClients[Split]:
    """Return one client that has all rows, in one batch per level."""

    def one(batches: Batches) -> Batches:
        examples, mask = jax.tree.map(
            lambda a: a.reshape(1, 1, -1, *a.shape[3:]),
            (batches.examples, batches.mask),
        )
        rows = batches.mask.sum((1, 2)).astype(jnp.result_type(float))
        weight = jnp.ones_like(rows)
        if problem.weighting == "uniform":  # A row's: the mean over rows of it is 1.
            count = (rows > 0).astype(rows.dtype).sum()
            weight = rows.sum() / jnp.maximum(rows * count, 1)
        weight = jnp.broadcast_to(weight[:, None, None], batches.mask.shape)
        number = jnp.zeros(1, jnp.int32)
        return Batches((examples, weight.reshape(mask.shape)), mask, number)

    return fad.AtClients(Split(*map(one, cohort.unsafe_gather())))


@dataclass(frozen=True)
class Config:
    """The options of the centralised reference."""

    lower_lr: float = 0.1
    upper_lr: float = 0.1
    inner_steps: int = 10
    terms: int = 10

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "upper_lr")
        check_range(self, "[1, inf)", "inner_steps", "terms")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    return centralised_bilevel(
        task.problem, task.init_upper, task.init_lower, **dataclasses.asdict(config)
    )
