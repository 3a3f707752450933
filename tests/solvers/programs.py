"""Quadratic clients as batches, every solver, and each as plain loops."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fad
from fad.data import Quadratics
from fad.local import Batches

LR = 0.3
# Name -> how to make the solver; each is compared with its own loop below.
SOLVERS: dict[str, Callable[..., fad.solvers.Solver]] = {
    "fedavg": fad.solvers.fedavg,
    "svrg": fad.solvers.svrg,
    "fedlin": fad.solvers.fedlin,
    "scaffold I": functools.partial(fad.solvers.scaffold, option="I"),
    "scaffold II": fad.solvers.scaffold,
    "gradient_descent": fad.solvers.gradient_descent,
}
WITH_PASSES = [name for name in SOLVERS if name != "gradient_descent"]
EXACT = [name for name in SOLVERS if name != "fedavg"]


class Row(NamedTuple):
    """An example: its loss is ``y'Ay/2 + y'Cx + a'y``."""

    A: Any
    C: Any
    a: Any


def loss_of(x):
    """Return the loss of y that closes over x."""

    def loss(y, rows):
        def one(row):
            return y @ row.A @ y / 2 + y @ row.C @ x + row.a @ y

        return jax.vmap(one)(rows)

    return loss


def whole_clients(data: Quadratics, steps: list[int]) -> fad.AtClients[Batches]:
    """Return clients of one row each, which comes again in each of their steps."""
    n, most = data.num_clients, max(steps)

    def repeat(leaf):
        shape = (n, most, 1, *leaf.shape[1:])
        return jnp.asarray(np.broadcast_to(leaf[:, None, None], shape))

    rows = Row(*map(repeat, (data.clients.A, data.clients.C, data.clients.a)))
    mask = np.arange(most)[None, :, None] < np.array(steps)[:, None, None]
    return fad.AtClients(Batches(rows, jnp.asarray(mask), jnp.arange(n)))


# Clients of several rows: unequal, one of them empty, one with a gap; padding is NaN.
MASK = np.array(
    [
        [[1, 1], [1, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[1, 1], [1, 1], [1, 1]],
        [[1, 0], [0, 0], [0, 1]],
    ],
    bool,
)


def hard_rows() -> Row:
    """Return NumPy rows ``[4, 3, 2, *]``, NaN off the mask."""
    drawn = Quadratics.random(MASK.size, lower_size=3, upper_size=2, seed=5).clients

    def padded(leaf):
        leaf = leaf.reshape(*MASK.shape, *leaf.shape[1:])
        real = np.expand_dims(MASK, tuple(range(3, leaf.ndim)))
        return np.where(real, leaf, np.nan)

    return Row(*map(padded, (drawn.A, drawn.C, drawn.a)))


def hard_cohort(dtype: Any = None) -> fad.AtClients[Batches]:
    """Return the clients of ``hard_rows``."""
    rows = jax.tree.map(lambda v: jnp.asarray(v, dtype), hard_rows())
    clients = jnp.array([7, 3, 0, 9], jnp.int32)
    return fad.AtClients(Batches(rows, jnp.asarray(MASK), clients))


def run(solver, x, y, cohort, *, steps, key=None):
    """Return y after some steps, and the memory."""

    def once(carry, _):
        return solver.step(loss_of(x), *carry, cohort, key), None

    return jax.lax.scan(once, (y, solver.init(y, cohort)), length=steps)[0]


# ------------------------------------------------------------------------------------
# plain loops over clients, steps and rows: with NumPy arrays, or JAX's to differentiate
# ------------------------------------------------------------------------------------


def plain_clients(rows: Row) -> list[list[list[Row]]]:
    """Return clients -> batches with real rows -> real rows."""

    def batch(i, j):
        real = (k for k in range(MASK.shape[2]) if MASK[i, j, k])
        return [Row(*(v[i, j, k] for v in rows)) for k in real]

    clients = [[batch(i, j) for j in range(MASK.shape[1])] for i in range(len(MASK))]
    return [[b for b in batches if b] for batches in clients]


def _gradient(batch, x, y):
    return sum(row.A @ y + row.C @ x + row.a for row in batch) / len(batch)


def plain_run(name, lr, x, y, rows, *, steps, weighting="uniform", server_lr=1.0):
    """Return y after some steps of the solver called ``name``."""
    clients = [c for c in plain_clients(rows) if c]
    count = [1 if weighting == "uniform" else sum(map(len, c)) for c in clients]
    mean = lambda vs: sum(w * v for w, v in zip(count, vs, strict=True)) / sum(count)  # noqa: E731
    full = lambda c, y: _gradient([row for batch in c for row in batch], x, y)  # noqa: E731
    control = [0 * y for _ in clients]
    for _ in range(steps):
        q, c = mean([full(client, y) for client in clients]), mean(control)
        ends = []
        for i, client in enumerate(clients):
            end, step = y, lr / len(client) if name == "fedlin" else lr
            for batch in client:
                slope = _gradient(batch, x, end)
                if name in ("svrg", "fedlin"):
                    slope = slope - _gradient(batch, x, y) + q
                if name.startswith("scaffold"):
                    slope = slope - control[i] + c
                end = end - step * slope
            ends.append(end)
            if name == "scaffold I":
                control[i] = full(client, y)
            if name == "scaffold II":
                control[i] = control[i] - c + (y - end) / (len(client) * lr)
        if name == "gradient_descent":
            y = y - lr * q
        else:
            y = y + server_lr * (mean(ends) - y)
    return y
