"""RABO: bilevel optimisation on clients that hold parts of x and of y.

Li, Zhang, Zheng and others, 2025, on resource-adaptive distributed bilevel
optimisation: sub-models of the upper variable x and of the lower one y, whatever fits
the client, and a hypergradient by finite differences. In one round, with the slices z_i
= (x_i, y_i, v_i) of ``_pruned.py`` and the directions d_i of ``_bilevel.py``, v the
solution of the linear system,

    each client i, for each lower batch, x_i fixed:
        y_i, v_i <- y_i - lower_lr d_y, v_i - linear_lr d_v, both at (x_i, y_i, v_i)
    then, on all of its rows:
        h_i = d_x(x_i, y_i, v_i)
    server, each coordinate over the clients that hold it:                   [1 round]
        x <- x - upper_lr cov(h);   y <- y + cov(y_i - y);   v <- v + cov(v_i - v)

    form = "difference": second derivatives by central differences along v, O(delta^2)
        off; "penalty": of the value function, O(1 / penalty) off (``memfbo.py``);
    form = "exact": by products, the second-order baseline with the same slices.

Both levels' slices are the client's own: dual pruning. With every coordinate held by C*
clients or more, x's error falls as 1 / sqrt(C* Q) in Q rounds; ``coverage_x`` and
``coverage_y`` are the least numbers of a round.

The paper's full text was not at hand. Known are the setting, the two algorithms, finite
differences, and the rate with its coverage of x. Ours are: the single loop and its
order, both forms, one lower step per batch, no bound on v, the average of y and v, and
the extraction rules. ``average = "naive"``, over all clients, is what it is compared
to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

import fad
from algorithms._bilevel import Oracle, Variables, share_of, walk
from algorithms._pruned import Average, Form, Tier, Work, oracle_of, pruned
from algorithms._pruned_config import BaseConfig


def rabo(
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
    """Build RABO.

    Args:
        tiers: What the clients of each tier hold.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        form: How second derivatives are done without.
        average: Each coordinate over those that hold it, or over all clients.
        lower_lr: The clients' step of y, one per lower batch.
        linear_lr: That of v.
        upper_lr: The server's step of x.
        delta: The way of the differences, along v.
        penalty: The weight of the lower level.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)``. Its
        metrics are MemFBO's, ``coverage_x`` and ``coverage_y``, and ``uncovered``, the
        number of entries of x and y that nobody holds, also by leaf.
    """
    lrs, oracle = (
        Variables(upper_lr, lower_lr, linear_lr),
        oracle_of(form, delta, penalty),
    )
    kinds = {"form": form, "average": average, "walked": ("y", "v")}
    return pruned(tiers, init_x, init_y, client_work(oracle, lrs), lrs, **kinds)


def client_work(oracle: Oracle, lrs: Variables) -> Work:
    """Return a client's steps of y and v, and its hypergradient after them."""

    def work(client, z):
        def still(own, yv, share):  # no x: not even its direction is computed
            return oracle(own, yv._replace(x=z.x), share)._replace(x=None)

        at, sums = walk(client, still, z._replace(x=None), lrs)
        end = oracle(client, at._replace(x=z.x), share_of(client))
        return sums._replace(x=end.x)

    return work


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of RABO; delta or penalty are those of its form."""


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    tiers = config.tiers(task)
    return rabo(tiers, task.init_upper, task.init_lower, **config.options())
