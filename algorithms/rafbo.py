"""RAFBO: local bilevel steps on clients that hold parts of x and of y.

Li, Zhang, Zheng and others, 2025, as RABO (``rabo.py``, which says what is known and
what is ours), with x moving at the clients too. In one round, with the slices z_i =
(x_i, y_i, v_i) of ``_pruned.py`` and the directions d_i of ``_bilevel.py``,

    each client i, for each batch:
        z_i <- z_i - lr d_i(z_i; b),   lr that of x, of y and of v
    server, each coordinate over the clients that hold it:                   [1 round]
        z   <- z + cov(z_i - z)

The forms are RABO's. With all coordinates at all clients it is MemFBO (``memfbo.py``),
or FedBiO (``fedbio.py``) where the form is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

import fad
from algorithms._bilevel import Variables, walk
from algorithms._pruned import Average, Form, Tier, oracle_of, pruned
from algorithms._pruned_config import BaseConfig


def rafbo(
    tiers: Sequence[Tier],
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    form: Form = "difference",
    average: Average = "coverage",
    lower_lr: float,
    linear_lr: float,
    upper_lr: float,
    delta: float = 5e-3,
    penalty: float = 10.0,
) -> fad.Algorithm:
    """Build RAFBO.

    Args:
        tiers: What the clients of each tier hold.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        form: How second derivatives are done without.
        average: Each coordinate over those that hold it, or over all clients.
        lower_lr: The clients' step of y, one per lower batch.
        linear_lr: That of v.
        upper_lr: That of x.
        delta: The way of the differences, along v.
        penalty: The weight of the lower level.

    Returns:
        The algorithm, with the cohorts and the metrics of RABO.
    """
    lrs, oracle = (
        Variables(upper_lr, lower_lr, linear_lr),
        oracle_of(form, delta, penalty),
    )

    def work(client, z):
        return walk(client, oracle, z, lrs)[1]

    kinds = {"form": form, "average": average, "walked": ("x", "y", "v")}
    return pruned(tiers, init_x, init_y, work, lrs, **kinds)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of RAFBO; delta or penalty are those of its form."""


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    tiers = config.tiers(task)
    return rafbo(tiers, task.init_upper, task.init_lower, **config.options())
