"""SimFBO and ShroFBO: a federated bilevel step in one round.

Yang, Xiao and Ji, "SimFBO: Towards Simple, Flexible and Communication-Efficient
Federated Bilevel Learning", NeurIPS 2023. To minimise ``mean_i f_i(x, y*(x))`` with
``y*(x) = argmin_y mean_i g_i(x, y)``, all at once and without inner loops:

    each client i, tau_i times, from z = (x, y, v), with d_i of ``_bilevel.py``:
        q_i <- q_i + d_i(z_i);   x_i, y_i, v_i <- z_i - lr d_i(z_i)
    server, with q = mean_i q_i:                                             [1 round]
        x <- x - eta upper_lr q_x
        y <- y - eta lower_lr q_y
        v <- the nearest to v - eta linear_lr q_v with |v| <= radius

A client that takes more steps has more say in q. ShroFBO divides, as FedNova does: ``q
= (mean_i tau_i) mean_i q_i / tau_i``. With equal numbers of steps both are the same.

With one step each on all rows and all clients the fixed point is the exact optimum;
with more, clients that differ drift apart, and so does the fixed point, by O(lr).
The paper's full text was not at hand: one round, the three variables, the server's own
steps and the normalisation are the abstract's, and the rest follows from them.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import _bilevel
from algorithms._bilevel import Variables, local_steps, move, times
from algorithms._ranges import check_range
from fad.estimators import Bilevel

Variant = Literal["simfbo", "shrofbo"]


def simfbo(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    variant: Variant = "simfbo",
    lower_lr: float,
    linear_lr: float,
    upper_lr: float,
    server_lr: float = 1.0,
    radius: float = 100.0,
) -> fad.Algorithm:
    """Build SimFBO or ShroFBO.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        variant: Whether clients' sums are divided by their numbers of steps.
        lower_lr: The step of y, one per lower batch.
        linear_lr: The step of v.
        upper_lr: The step of x.
        server_lr: The server's step eta; with 1 it takes the mean of the clients' z.
        radius: The most that v may be; ``grad_y f / mu`` suffices.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are ``upper_loss`` at the variables sent; the norms of the mean
        directions, ``hypergradient``, ``lower_residual`` and ``linear_residual``; and
        ``linear_norm``, that of v.
    """
    lrs = Variables(upper_lr, lower_lr, linear_lr)
    normalise = variant == "shrofbo"

    def step(z, cohort, key):
        found = local_steps(
            problem, _bilevel.exact, z, lrs, cohort, key, normalise=normalise
        )
        z = move(z, found.sums, lrs, scale=server_lr)
        z = z._replace(v=project(z.v, radius))
        return z, found.metrics() | {"linear_norm": optax.tree.norm(z.v)}

    return fad.Algorithm(_bilevel.init(init_x, init_y), step)


def project(v: Any, radius: float) -> Any:
    """Return the nearest point of the ball around 0."""
    square = optax.tree.norm(v, squared=True)
    bound = jnp.asarray(radius, square.dtype) ** 2
    outside = square > bound  # NaN is not, and stays.
    safe = jnp.where(outside, square, jnp.ones_like(square))
    return times(jnp.where(outside, jnp.sqrt(bound / safe), jnp.ones_like(square)), v)


@dataclass(frozen=True)
class Config:
    """The options of SimFBO and ShroFBO."""

    variant: Variant = "simfbo"
    lower_lr: float = 0.05
    linear_lr: float = 0.05
    upper_lr: float = 0.05
    server_lr: float = 1.0
    radius: float = 100.0

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "linear_lr", "upper_lr", "server_lr")
        check_range(self, "(0, inf]", "radius")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    return simfbo(
        task.problem, task.init_upper, task.init_lower, **dataclasses.asdict(config)
    )
