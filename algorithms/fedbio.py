"""FedBiO and FedBiOAcc: local bilevel steps, averaged now and then.

Li, Huang and Huang, "Communication-Efficient Federated Bilevel Optimization with Global
and Local Lower Level Problems", NeurIPS 2023. To minimise ``mean_i f_i(x, y*(x))`` with
``y*(x) = argmin_y mean_i g_i(x, y)``, where ``u`` (here v) solves the global linear
system of the hypergradient, with the directions d_i of ``_bilevel.py``:

    FedBiO, client i, I times from z = (x, y, v):
        z_i <- z_i - lr d_i(z_i; b)
    server:                                                                  [1 round]
        z   <- mean_i z_i

    FedBiOAcc, client i, I times from (z, w), z' being where z came from:
        w_i <- d_i(z_i; b) + (1 - c a^2) (w_i - d_i(z'_i; b))
        z'_i, z_i <- z_i, z_i - a lr w_i,   a = (1 + decay t)^(-1/3)
    server:                                                                  [1 round]
        z, w <- mean_i (z_i, w_i)

I is the client's number of lower batches. ``a`` is constant in a round, t counts rounds
where the paper counts steps: so z' = z + a lr w, which clients need not be sent. The
first step of all has no past, ``w = d``. With c = 1 and decay = 0 it is FedBiO. Both
batches of a step are one, so the momentum's variance falls (STORM); a step has two
evaluations of d, and a round sends z and w.

The paper's full text was not at hand: the recursion is STORM's, on each of the three.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import fad
from algorithms import _bilevel
from algorithms._bilevel import Variables, add, local_steps, move, subtract, times
from algorithms._ranges import check_range
from fad.estimators import Bilevel

Variant = Literal["fedbio", "fedbioacc"]


class State(NamedTuple):
    """The server's state of FedBiOAcc; that of FedBiO is z alone."""

    z: Variables
    w: Variables  # the momentum
    rounds: jax.Array
    x = property(lambda self: self.z.x)
    y = property(lambda self: self.z.y)
    params = property(lambda self: self.z.params)


def fedbio(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    lower_lr: float,
    linear_lr: float,
    upper_lr: float,
) -> fad.Algorithm:
    """Build FedBiO.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        lower_lr: The clients' step of y, one per lower batch.
        linear_lr: That of v.
        upper_lr: That of x.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are ``upper_loss`` at the variables sent, and the norms of the mean
        directions, ``hypergradient``, ``lower_residual`` and ``linear_residual``.
    """
    lrs = Variables(upper_lr, lower_lr, linear_lr)

    def step(z, cohort, key):
        found = local_steps(problem, _bilevel.exact, z, lrs, cohort, key)
        return move(z, found.sums, lrs), found.metrics()

    return fad.Algorithm(_bilevel.init(init_x, init_y), step)


def fedbioacc(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    lower_lr: float,
    linear_lr: float,
    upper_lr: float,
    momentum: float = 0.5,
    decay: float = 0.0,
) -> fad.Algorithm:
    """Build FedBiOAcc.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        lower_lr: The clients' step of y, one per lower batch.
        linear_lr: That of v.
        upper_lr: That of x.
        momentum: The constant c, in (0, 1]; 1 is without memory.
        decay: How fast the steps fall.

    Returns:
        The algorithm, as ``fedbio``'s; the norms are those of the momenta.
    """
    lrs, begin = Variables(upper_lr, lower_lr, linear_lr), _bilevel.init(init_x, init_y)

    def init(key):
        z = begin(key)
        return State(z, times(0, z), jnp.zeros((), jnp.int32))

    def rate(rounds):
        return (1 + decay * rounds.astype(jnp.result_type(float))) ** (-1 / 3)

    def step(state, cohort, key):
        z, w, rounds = state
        scale = rate(rounds)
        last, keep = rate(jnp.maximum(rounds - 1, 0)), 1 - momentum * scale**2

        def work(client):
            def one(carry, own, share):
                before, z, w, fresh = carry
                new, old = (_bilevel.exact(own, at, share) for at in (z, before))
                kept = jnp.where(fresh, jnp.zeros_like(keep), keep)
                w = add(new, times(kept, subtract(w, old)))
                return z, move(z, w, lrs, scale=scale), w, jnp.zeros_like(fresh)

            start = move(z, w, lrs, scale=-last), z, w, rounds == 0
            _, *moved, _ = _bilevel.each_batch(client, one, start)
            return subtract(tuple(moved), (z, w)), client.f(z.x, z.y)

        change, value = fad.estimators.round_means(problem, work, cohort, key)
        z, w = add((z, w), change)
        return State(z, w, rounds + 1), {"upper_loss": value} | _bilevel.norms(w)

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config:
    """The options of FedBiO, and of FedBiOAcc: momentum and decay."""

    variant: Variant = "fedbio"
    lower_lr: float = 0.05
    linear_lr: float = 0.05
    upper_lr: float = 0.05
    momentum: float = 0.5
    decay: float = 0.0

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "linear_lr", "upper_lr")
        check_range(self, "(0, 1]", "momentum")
        check_range(self, "[0, inf)", "decay")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    options = dict(vars(config))
    if options.pop("variant") == "fedbioacc":
        make = fedbioacc
    else:
        make = fedbio
        del options["momentum"], options["decay"]
    return make(task.problem, task.init_upper, task.init_lower, **options)
