"""What the tests of the classical algorithms share: cohorts, memories, a quadratic."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fad


def subset(cohort: fad.AtClients, ids: Any) -> fad.AtClients:
    """The batches of some of the clients."""
    return fad.AtClients(jax.tree.map(lambda x: x[ids], cohort.unsafe_gather()))


def partial_cohorts(num_clients: int, rounds: int, size: int) -> list[np.ndarray]:
    """Which clients take part in each round."""
    rng = np.random.default_rng(1)
    return [rng.permutation(num_clients)[:size] for _ in range(rounds)]


def run_partially(algorithm: Any, cohort: fad.AtClients, ids: list[np.ndarray]):
    """Run one round with each set of clients: state, memories ``[N, *]``, metrics."""
    state = algorithm.init(jax.random.key(0))
    step, rows, table = jax.jit(algorithm.step), [], None
    if algorithm.init_client is not None:
        first = algorithm.init_client(state)
        n = cohort.num_clients
        table = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * n), first)
    for t, some in enumerate(ids):
        args = (state, subset(cohort, some), jax.random.key(t))
        if table is None:
            state, metrics = step(*args)
        else:
            own = fad.AtClients(jax.tree.map(lambda x, i=some: x[i], table))
            state, metrics, own = step(*args, own)
            new = own.unsafe_gather()
            table = jax.tree.map(lambda x, y, i=some: x.at[i].set(y), table, new)
        rows.append(metrics)
    return state, table, rows


class Quadratic(NamedTuple):
    """Clients with losses ``|A_i x - b_i|^2 / 2``, each step the whole of one's data.

    Attributes:
        cohort: One row a batch, repeated as often as the client takes steps.
        a: ``[n, d, d]``.
        b: ``[n, d]``.
        optimum: ``[d]``, of the mean loss, every client counting the same.
    """

    cohort: fad.AtClients
    a: np.ndarray
    b: np.ndarray
    optimum: np.ndarray


def quadratic(steps: Any = (10,) * 5, dim: int = 3, seed: int = 0) -> Quadratic:
    """Heterogeneous clients, so many steps of each; curvatures between 1/4 and 1."""
    rng, n, most = np.random.default_rng(seed), len(steps), max(steps)
    a = np.stack(
        [
            np.linspace(0.5, 1, dim)[:, None]
            * np.linalg.qr(rng.normal(size=(dim, dim)))[0]
            for _ in range(n)
        ]
    )
    b = rng.normal(size=(n, dim)) + np.arange(n)[:, None]
    optimum = np.linalg.solve(
        np.einsum("nij,nik->jk", a, a), np.einsum("nij,ni->j", a, b)
    )
    shape = (n, most, 1)
    batches = fad.local.Batches(
        examples={
            "a": jnp.broadcast_to(jnp.asarray(a)[:, None, None], (*shape, dim, dim)),
            "b": jnp.broadcast_to(jnp.asarray(b)[:, None, None], (*shape, dim)),
        },
        mask=jnp.asarray(
            np.arange(most)[None, :, None] < np.array(steps)[:, None, None]
        ),
        client=jnp.arange(n),
    )
    return Quadratic(fad.AtClients(batches), a, b, optimum)


def quadratic_loss(x, examples):
    """``[rows]``, for params that are one vector ``[d]``."""
    residual = jnp.einsum("rij,j->ri", examples["a"], x) - examples["b"]
    return jnp.sum(residual**2, axis=1) / 2


def distances(algorithm: Any, problem: Quadratic, rounds: int) -> np.ndarray:
    """The distance to the optimum after each round with all clients."""
    found, state = [], algorithm.init(jax.random.key(0))
    step, own = jax.jit(algorithm.step), None
    if algorithm.init_client is not None:
        first = algorithm.init_client(state)
        n = len(problem.a)
        own = fad.AtClients(
            jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * n), first)
        )
    for t in range(rounds):
        args = (state, problem.cohort, jax.random.key(t))
        if own is None:
            state, _ = step(*args)
        else:
            state, _, own = step(*args, own)
        found.append(np.linalg.norm(np.asarray(state.params) - problem.optimum))
    return np.array(found)


def fedavg_stays(problem: Any, lr: float, steps: int, mu: float = 0.0) -> np.ndarray:
    """Where FedAvg (or FedProx, with ``mu``) stays on a quadratic: ``[d]``.

    With curvatures H_i and slopes s_i at zero a client's steps lead from x to
    ``x - Q_i (H_i x - s_i)``, ``Q_i = (I - (I - lr (H_i + mu))^K) (H_i + mu)^-1``; at
    the fixed point the mean of the moves is zero.
    """
    h = np.einsum("nij,nik->njk", problem.a, problem.a)
    slopes = np.einsum("nij,ni->nj", problem.a, problem.b)
    eye = np.eye(h.shape[-1])
    pulled = h + mu * eye
    q = (eye - np.linalg.matrix_power(eye - lr * pulled, steps)) @ np.linalg.inv(pulled)
    return np.linalg.solve(
        np.einsum("nij,njk->ik", q, h), np.einsum("nij,nj->i", q, slopes)
    )


def start(algorithm: Any, n: int) -> tuple[Any, fad.AtClients]:
    """The first state, and what n clients keep before their first round."""
    state = algorithm.init(jax.random.key(0))
    first = algorithm.init_client(state)
    return state, fad.AtClients(
        jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * n), first)
    )
