"""FedMSA: multi-sequence stochastic approximation, for bilevel problems.

Shen, Tarzanagh and others, "FedMSA: Federated Multi-Sequence Stochastic Approximation
with Local Hypergradient Estimation", 2023. To minimise ``mean_i f_i(x, y*(x))`` with
``y*(x) = argmin_y mean_i g_i(x, y)``, an epoch moves z = (x, y, v) with the directions
d_i of ``_bilevel.py`` (the paper's y is w):

    h   <- mean_i d_i(z) + (1 - rho) (h - mean_i d_i(z'))                    [1 round]
    each client i, tau_i times from z, h_i = h:
        z'_i, z_i <- z_i, z_i - lr h_i
        h_i <- h_i + d_i(z_i; b) - d_i(z'_i; b)
    z', z <- z, mean_i z_i                                                   [1 round]

The first line sees all of a client's rows, and z' is where the last epoch began. So h
carries momentum over epochs, and the clients' differences correct a common direction
(SARAH): they do not pull z apart at once, and where h = 0 nothing moves.

The authors' code keeps each client's last direction at the client; here, as clients
are stateless, both are evaluated on the data of the epoch. It begins v by a Neumann
series in rounds of their own; here v begins at 0.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad
from algorithms import _bilevel
from algorithms._bilevel import Variables, add, move, subtract, times
from algorithms._ranges import check_range
from fad.estimators import Bilevel


class State(NamedTuple):
    """The server's state."""

    z: Variables
    before: Variables  # z at the start of the last epoch
    h: Variables  # the momentum
    epochs: jax.Array
    x = property(lambda self: self.z.x)
    y = property(lambda self: self.z.y)
    params = property(lambda self: self.z.params)


def fedmsa(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    lower_lr: float,
    linear_lr: float,
    upper_lr: float,
    rho: float = 0.5,
) -> fad.Algorithm:
    """Build FedMSA.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        lower_lr: The clients' step of y, one per lower batch; the paper's beta.
        linear_lr: That of v; beta too.
        upper_lr: That of x; alpha.
        rho: How much is new in the momentum, in (0, 1]; 1 is without memory.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are ``upper_loss`` at the start of the epoch, and the norms of the
        momenta, ``hypergradient``, ``lower_residual`` and ``linear_residual``.
    """
    lrs, begin = Variables(upper_lr, lower_lr, linear_lr), _bilevel.init(init_x, init_y)

    def init(key):
        z = begin(key)
        return State(z, z, times(0, z), jnp.zeros((), jnp.int32))

    def step(state, cohort, key):
        z, before, h, epochs = state
        keys = jax.random.split(key)
        keep = jnp.where(epochs > 0, 1 - rho, 0)

        def direct(client):
            share = _bilevel.share_of(client)
            new, old = (_bilevel.exact(client, at, share) for at in (z, before))
            return subtract(new, times(keep, old)), client.f(z.x, z.y)

        change, value = fad.estimators.round_means(problem, direct, cohort, keys[0])
        h = add(change, times(keep, h))

        def work(client):
            def one(carry, own, share):
                before, z, h = carry
                new, old = (_bilevel.exact(own, at, share) for at in (z, before))
                h = add(h, subtract(new, old))
                return z, move(z, h, lrs), h

            _, moved, _ = _bilevel.each_batch(client, one, (z, z, h))
            return subtract(moved, z), ()

        change, _ = fad.estimators.round_means(problem, work, cohort, keys[1])
        metrics = {"upper_loss": value} | _bilevel.norms(h)
        return State(add(z, change), z, h, epochs + 1), metrics

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config:
    """The options of FedMSA."""

    lower_lr: float = 0.1
    linear_lr: float = 0.1
    upper_lr: float = 0.05
    rho: float = 0.5

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "linear_lr", "upper_lr")
        check_range(self, "(0, 1]", "rho")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    return fedmsa(
        task.problem, task.init_upper, task.init_lower, **dataclasses.asdict(config)
    )
