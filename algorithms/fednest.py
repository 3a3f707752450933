"""FedNest: federated bilevel optimisation by nested corrected local steps.

Tarzanagh et al., "FedNest: Federated Bilevel, Minimax, and Compositional Optimization",
ICML 2022. To minimise ``mean_i f_i(x, y*(x))`` with ``y*(x) = argmin_y mean_i g_i(x,
y)``, an epoch is

    FedInn, T times:  q   = mean_i grad_y g_i(x, y)                          [1 round]
                      y_i <- y_i - beta [grad_y g_i(x, y_i) - grad_y g_i(x, y) + q]
                      y   <- mean_i y_i                                      [1 round]
    FedIHGP:          p   = step sum_n (I - step H)^n grad_y f, H = mean H_i  [N + 1 ..]
    FedOut:           h   = mean_i [grad_x f_i - J_i p]                      [1 round]
                      x_i <- x_i - alpha [grad_x f_i(x_i, y) - grad_x f_i(x, y) + h]
                      x   <- mean_i x_i                                      [1 round]

Variants, by what is corrected with a mean over clients (Table 2 of the paper):

    variant         inner           outer                     rounds
    fednest         SVRG            global hypergradient      2T + N + 3
    fednest-sgd     SGD             global hypergradient      T + N + 3
    lfednest-svrg   SVRG            local hypergradients      2T + 1
    lfednest        SGD             local hypergradients      T + 1

A local hypergradient has the client's own Hessian; x takes local steps along it. It is
biased where clients differ.

The authors' code differs from the paper: its "global" product keeps each client's own
vector from step to step, which is the local one again. This file follows the paper.
With ``random`` the series is the paper's, of random length and unbiased; without, the
sum of its first N + 1 terms, as in the authors' experiments.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._lfednest import State, in_groups, local_epoch
from algorithms._ranges import check_range
from fad.estimators import Bilevel, cohort_at

Variant = Literal["fednest", "fednest-sgd", "lfednest-svrg", "lfednest"]


def fednest(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    variant: Variant = "fednest",
    inner_steps: int = 1,
    passes: int = 1,
    terms: int = 5,
    lower_lr: float,
    upper_lr: float,
    neumann_step: float,
    random: bool = False,
    keep: bool = True,
    groups: int = 1,
) -> fad.Algorithm:
    """Build FedNest or one of its variants.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        variant: What is corrected globally.
        inner_steps: The lower level's steps T of an epoch.
        passes: How often a client goes through its lower batches in a step.
        terms: Products N with the lower Hessian.
        lower_lr: The clients' step beta, one per lower batch.
        upper_lr: The clients' step alpha, one per upper batch.
        neumann_step: The series' step, at most 1 / L.
        random: Whether the series has a random length.
        keep: Whether clients keep, for an epoch, what of their lower losses does not
            depend on y (``fad.estimators.hoist``): faster, for memory.
        groups: Groups that the cohort is divided into, which take the rounds of an
            epoch in turn; in the authors' code each step of a level has its own.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are ``upper_loss``, the upper objective that the epoch's estimate is of,
        ``hypergradient``, its norm, ``lower_residual``, the lower gradient's norm, and
        ``growing``, whether the series' terms grew.
    """
    svrg = variant in ("fednest", "lfednest-svrg")
    solver = (fad.solvers.svrg if svrg else fad.solvers.fedavg)(
        lower_lr, weighting=problem.weighting, passes=passes
    )
    outer = _global if variant in ("fednest", "fednest-sgd") else local_epoch
    series = {"terms": terms, "step": neumann_step, "random": random}
    epoch = outer(problem, solver, inner_steps, series, upper_lr, keep, groups)

    def init(key):
        for_x, for_y = jax.random.split(key)
        return State(init_x(for_x), init_y(for_y))

    return fad.Algorithm(init, epoch)


def _global(problem, solver, inner_steps, series, lr, keep, groups):
    """FedInn, FedIHGP and FedOut."""
    estimator = fad.estimators.aid(
        problem,
        solver,
        steps=inner_steps,
        solve="random-neumann" if series["random"] else "neumann",
        terms=series["terms"],
        step=series["step"],
        keep=keep,
    )

    def epoch(state, cohort, key):
        cohorts = in_groups(cohort, groups)
        own = cohort_at(cohorts, inner_steps)
        start = estimator.init(state.x, state.y, own)
        found = estimator.estimate(state.x, start, cohorts, key)
        y = found.state.y

        x = fed_out(problem, state.x, y, found.hypergradient, own, key, lr)
        metrics = {
            "upper_loss": found.value,
            "hypergradient": optax.tree.norm(found.hypergradient),
            "lower_residual": found.report.lower,
            "growing": found.report.growing.astype(jnp.float32),
        }
        return State(x, y), metrics

    return epoch


def fed_out(problem, x, y, h, cohort, key, lr):
    """Take FedOut's corrected local steps of x along h, and average: one round."""

    def upper(x, *examples):
        return problem.upper(x, y, *examples)

    return fad.solvers.corrected_round(
        upper,
        x,
        h,
        cohort.upper,
        jax.random.fold_in(key, 2**31 - 2) if problem.random else None,
        lr=lr,
        weighting=problem.weighting,
    )


@dataclass(frozen=True)
class Config:
    """The options of FedNest."""

    variant: Variant = "fednest"
    inner_steps: int = 1
    passes: int = 1
    terms: int = 5
    lower_lr: float = 0.01
    upper_lr: float = 0.01
    neumann_step: float = 0.01
    random: bool = False
    keep: bool = True
    groups: int = 1

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "upper_lr", "neumann_step")
        check_range(self, "[1, inf)", "inner_steps", "passes", "terms", "groups")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    return fednest(
        task.problem, task.init_upper, task.init_lower, **dataclasses.asdict(config)
    )
