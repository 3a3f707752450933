"""MemFBO: a federated bilevel step in one round, by first derivatives alone.

Yang, Xiao, Ma and Ji, "First-Order Federated Bilevel Learning", AAAI 2025: one loop,
all variables at once, gradients only. Its full text was not at hand, so these are the
two known ways to do that; clients take local steps on z = (x, y, v) along d_i, and the
server takes the mean of theirs, in one round:

    form = "difference": the directions of ``_bilevel.py`` with

        H_i v ~ |v| [grad_y g_i(x, y + e) - grad_y g_i(x, y - e)] / (2 delta)
        J_i v ~ |v| [grad_x g_i(x, y + e) - grad_x g_i(x, y - e)] / (2 delta)

    with e = delta v / |v|; exact for quadratics, otherwise O(delta^2) off, and by
    rounding O(eps / delta): in float32 delta near 5e-3 is best.

    form = "penalty": v solves ``g + f / penalty``, and the value function's gradient is

        d_x = grad_x f_i(x, v) + penalty [grad_x g_i(x, v) - grad_x g_i(x, y)]
        d_y = grad_y g_i(x, y)
        d_v = grad_y g_i(x, v) + grad_y f_i(x, v) / penalty

    O(1 / penalty) off. What y and v lack is amplified by the penalty, so that steps of
    x must be small against it.

An upper gradient is times s_i in both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import _bilevel
from algorithms._bilevel import Variables, add, local_steps, move, subtract, times
from algorithms._ranges import check_range
from fad.estimators import Bilevel

Form = Literal["difference", "penalty"]


def memfbo(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    form: Form = "difference",
    lower_lr: float,
    linear_lr: float,
    upper_lr: float,
    delta: float = 5e-3,
    penalty: float = 10.0,
) -> fad.Algorithm:
    """Build MemFBO.

    Args:
        problem: The two levels' losses.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        form: How second derivatives are done without.
        lower_lr: The clients' step of y, one per lower batch.
        linear_lr: That of v.
        upper_lr: That of x.
        delta: The way of the differences, along v.
        penalty: The weight of the lower level.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are ``upper_loss`` at the variables sent, and the norms of the mean
        directions, ``hypergradient``, ``lower_residual`` and ``linear_residual``.
    """
    lrs, begin = Variables(upper_lr, lower_lr, linear_lr), _bilevel.init(init_x, init_y)
    oracle = differences(delta) if form == "difference" else penalised(penalty)

    def init(key):
        z = begin(key)
        return z if form == "difference" else z._replace(v=z.y)

    def step(z, cohort, key):
        found = local_steps(problem, oracle, z, lrs, cohort, key)
        return move(z, found.sums, lrs), found.metrics()

    return fad.Algorithm(init, step)


def differences(delta: float) -> _bilevel.Oracle:
    """Return the directions with central differences along v."""

    def oracle(client, z, share):
        _, upper = client.f_xy(z.x, z.y)
        f_x, f_y = times(share, upper)
        slopes = jax.grad(client.g, (0, 1))
        length = _norm(z.v)
        unit = delta / jnp.where(length > 0, length, jnp.ones_like(length))
        way = times(unit, z.v)
        ahead, behind = slopes(z.x, add(z.y, way)), slopes(z.x, subtract(z.y, way))
        jv, hv = times(length / (2 * delta), subtract(ahead, behind))
        return Variables(subtract(f_x, jv), client.g_y(z.x, z.y), subtract(hv, f_y))

    return oracle


def penalised(penalty: float) -> _bilevel.Oracle:
    """Return the directions of the value function, with v a lower variable."""

    def oracle(client, z, share):
        _, upper = client.f_xy(z.x, z.v)
        f_x, f_y = times(share, upper)
        slopes = jax.grad(client.g, (0, 1))
        (x_at_y, g_y), (x_at_v, v) = slopes(z.x, z.y), slopes(z.x, z.v)
        x = add(f_x, times(penalty, subtract(x_at_v, x_at_y)))
        return Variables(x, g_y, add(v, times(1 / penalty, f_y)))

    return oracle


def _norm(v: Any) -> jax.Array:
    """Return the norm, with a zero derivative at zero."""
    square = optax.tree.norm(v, squared=True)
    none = square == 0
    root = jnp.sqrt(jnp.where(none, jnp.ones_like(square), square))
    return jnp.where(none, jnp.zeros_like(root), root)


@dataclass(frozen=True)
class Config:
    """The options of MemFBO; delta or penalty are those of its form."""

    form: Form = "difference"
    lower_lr: float = 0.05
    linear_lr: float = 0.05
    upper_lr: float = 0.05
    delta: float = 5e-3
    penalty: float = 10.0

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "linear_lr", "upper_lr")
        check_range(self, "(0, inf)", "delta", "penalty")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    return memfbo(task.problem, task.init_upper, task.init_lower, **dict(vars(config)))
