"""FedMBO: hypergradients by chains that travel from client to client.

Huang, Zhang and Ji, "Achieving Linear Speedup in Non-IID Federated Bilevel Learning",
ICML 2023. To minimise ``mean_i f_i(x, y*(x))`` with ``y*(x) = argmin_y mean_i g_i(x,
y)``, an epoch is

    T times:  y_i <- y - lower_lr grad_y g_i(x, y; b), once per batch
              y   <- mean_i y_i                                              [1 round]
    chains:   p_i <- grad_y f_i(x, y), at client i                           [1 round]
    N times:  chain i goes to client pi(i), pi drawn anew
              p_i <- p_i - step H_pi(i) p_i                        [1 round each, sent
              s_i <- s_i + step p_i                                 client by client]
    answer:   chain i goes to a last client j = pi(i)
              x   <- x - upper_lr mean_i [grad_x f_j - J_j s_i]              [1 round]

with s_i = step p_i at first. A chain meets each client with the same chance, so each is
in the mean the Neumann series of the mean Hessian, and n of them have 1/n of its
variance; the draws here are permutations of the one cohort.

**It needs unicast**: the server must pass a vector on from one named client to another.
That is no sum over clients, so the algorithm is outside of what federated computations
are closed under: it has no secure aggregation, its derivative is no such program of
rounds, ``fad.check`` refuses it, and ``fad.plan`` does not count what is passed on. It
is written with ``unsafe_gather``, the one named way out, for comparison alone.

The authors' code takes the series' random length, and draws from all clients.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._bilevel import add, subtract, times
from algorithms._lfednest import State
from algorithms._ranges import check_range
from fad.estimators import Bilevel, Client


def fedmbo(
    problem: Bilevel,
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    *,
    inner_steps: int = 1,
    terms: int = 5,
    lower_lr: float,
    upper_lr: float,
    neumann_step: float,
) -> fad.Algorithm:
    """Build FedMBO.

    Args:
        problem: The two levels' losses; clients must count the same.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        inner_steps: The lower level's steps T of an epoch.
        terms: The clients N that a chain visits for a product with the Hessian.
        lower_lr: The clients' step of y, one per lower batch.
        upper_lr: The server's step of x.
        neumann_step: The chains' step, at most 1 / L.

    Returns:
        The algorithm, whose cohorts are ``AtClients(fad.estimators.Split)`` of clients
        with rows of both levels. Its metrics are ``upper_loss``, and the norms
        ``hypergradient`` and ``lower_residual``.

    Raises:
        FadError: If clients count by their examples.
    """
    if problem.weighting != "uniform":
        raise fad.FadError(
            f"fedmbo: problem.weighting is {problem.weighting!r}; expected 'uniform': "
            "a chain goes to all clients with the same chance."
        )
    solver = fad.solvers.fedavg(lower_lr)

    def init(key):
        for_x, for_y = jax.random.split(key)
        return State(init_x(for_x), init_y(for_y))

    def step(state, cohort, key):
        x, y = state
        lower = _lower(problem, x)

        def inner(y, key):
            own = key if problem.random else None
            return solver.step(lower, y, None, cohort.lower, own)

        *inner_keys, last = jax.random.split(key, inner_steps + 1)
        y, _ = jax.lax.scan(inner, y, jnp.stack(inner_keys))
        q, value, h = _chains(problem, x, y, cohort, last, terms, neumann_step)
        metrics = {
            "upper_loss": value,
            "hypergradient": optax.tree.norm(h),
            "lower_residual": optax.tree.norm(q),
        }
        return State(subtract(x, times(upper_lr, h)), y), metrics

    return fad.Algorithm(init, step)


def _lower(problem, x):
    return lambda y, *examples: problem.lower(x, y, *examples)


@fad.program
def _chains(problem, x, y, cohort, key, terms, step):
    """Return the mean lower gradient, the upper objective and the hypergradient."""

    def at(split):
        own = fad.local.client_key(key, split.lower.client) if problem.random else None
        return Client(problem, split, own)

    def begin(split):
        client = at(split)
        value, (_, p) = client.f_xy(x, y)
        return (client.g_y(x, y), value), (p, times(step, p))

    def visit(split, chain):
        p, s = chain
        p = subtract(p, times(step, at(split).hessian(x, y, p)))
        return p, add(s, times(step, p))

    def answer(split, chain):
        client = at(split)
        return subtract(client.f_xy(x, y)[1][0], client.cross(x, y, chain[1]))

    def one(chains, key):
        return fad.map(visit, cohort, passed_on(chains, key)), None

    told, chains = fad.map(begin, cohort)
    *visits, last = jax.random.split(jax.random.fold_in(key, 0), terms + 1)
    chains, _ = jax.lax.scan(one, chains, jnp.stack(visits))
    h = fad.mean(fad.map(answer, cohort, passed_on(chains, last)))
    return *fad.mean(told), h


def passed_on(chains: fad.AtClients[Any], key: jax.Array) -> fad.AtClients[Any]:
    """Return the chains at other clients: unicast, which no sum can do."""
    order = jax.random.permutation(key, chains.num_clients)
    return fad.AtClients(
        jax.tree.map(lambda a: jnp.take(a, order, axis=0), chains.unsafe_gather())
    )


@dataclass(frozen=True)
class Config:
    """The options of FedMBO."""

    inner_steps: int = 1
    terms: int = 5
    lower_lr: float = 0.01
    upper_lr: float = 0.01
    neumann_step: float = 0.01

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "lower_lr", "upper_lr", "neumann_step")
        check_range(self, "[1, inf)", "inner_steps", "terms")


def build(config: Config, task: Any) -> fad.Algorithm:
    """Build the algorithm of a config for a bilevel task."""
    return fedmbo(
        task.problem, task.init_upper, task.init_lower, **dataclasses.asdict(config)
    )
