"""FBO-AggITD: the hypergradient is made while the lower level is solved.

Xiao and Ji, "Communication-Efficient Federated Hypergradient Computation via Aggregated
Iterative Differentiation", ICML 2023. To minimise ``mean_i f_i(x, y*(x))`` with ``y*(x)
= argmin_y mean_i g_i(x, y)``, an epoch is

    N times:  q   = mean_i grad_y g_i(x, y);  what P needs rides along       [1 round]
              P   <- P - step (mean_i H_i P - mean_i grad_y f_i)
              y_i <- y_i - beta [grad_y g_i(x, y_i) - grad_y g_i(x, y) + q]
              y   <- mean_i y_i                                              [1 round]
    outer:    h   = mean_i [grad_x f_i - J_i P]                              [1 round]
              x_i <- x_i - alpha [grad_x f_i(x_i, y) - grad_x f_i(x, y) + h]
              x   <- mean_i x_i                                              [1 round]

in 2N + 2 rounds; FedNest takes 2N + 3 and one more per product with the Hessian. P is a
gradient of the lower level's program: see ``fad.estimators.aggitd``, which has both of
its forms. The paper's full text was not at hand: its abstract fixes what is shared with
the lower level's rounds, the rest is rebuilt from FedNest's parts.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

import fad
from algorithms._lfednest import State, in_groups
from algorithms._ranges import check_range
from algorithms.fednest import fed_out
from fad.estimators import Bilevel, cohort_at


def aggitd(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    inner_steps: int = 5,
    passes: int = 1,
    lower_lr: float,
    upper_lr: float,
    step: float | None = None,
    form: Literal["sum", "random"] = "sum",
    keep: bool = True,
    groups: int = 1,
) -> fad.Algorithm:
    """Build FBO-AggITD.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        inner_steps: The lower level's steps N of an epoch.
        passes: How often a client goes through its lower batches in a step.
        lower_lr: The clients' step beta, one per lower batch.
        upper_lr: The clients' step alpha, one per upper batch.
        step: The recursion's; beta times a client's local steps without it.
        form: ``sum``, or ``random``: the paper's, of a random step of the N.
        keep: Whether clients keep, for an epoch, what of their lower losses does not
            depend on y (``fad.estimators.hoist``): faster, for memory.
        groups: Groups that the cohort is divided into, which take the rounds of an
            epoch in turn; in the authors' code each step of a level has its own.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are ``upper_loss``, the upper objective that the epoch's estimate is of,
        ``hypergradient``, its norm, and ``lower_residual``, the lower gradient's norm.
    """
    options = {"lr": lower_lr, "passes": passes, "step": step, "form": form}
    options |= {"keep": keep}
    estimator = fad.estimators.aggitd(problem, steps=inner_steps, **options)

    def init(key):
        for_x, for_y = jax.random.split(key)
        return State(init_x(for_x), init_y(for_y))

    def epoch(state, cohort, key):
        cohorts = in_groups(cohort, groups)
        own = cohort_at(cohorts, inner_steps)
        start = estimator.init(state.x, state.y, own)
        found = estimator.estimate(state.x, start, cohorts, key)
        y, h = found.state.y, found.hypergradient
        metrics = {
            "upper_loss": found.value,
            "hypergradient": optax.tree.norm(h),
            "lower_residual": found.report.lower,
        }
        return State(fed_out(problem, state.x, y, h, own, key, upper_lr), y), metrics

    return fad.Algorithm(init, epoch)


@dataclass(frozen=True)
class Config:
    """The options of FBO-AggITD."""

    inner_steps: int = 5
    passes: int = 1
    lower_lr: float = 0.01
    upper_lr: float = 0.01
    step: float | None = None
    form: Literal["sum", "random"] = "sum"
    keep: bool = True
    groups: int = 1

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "upper_lr")
        check_range(self, "[1, inf)", "inner_steps", "passes", "groups")
        if self.step is not None:
            check_range(self, "(0, inf)", "step")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    return aggitd(
        task.problem, task.init_upper, task.init_lower, **dataclasses.asdict(config)
    )
