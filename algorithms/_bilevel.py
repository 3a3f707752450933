"""What the single-loop bilevel algorithms share: directions, local steps, one round.

A single loop moves three variables at once: x, y and v, the solution of the linear
system ``H v = grad_y f`` with ``H = mean_i H_i`` of the hypergradient ``grad_x f - J
v``. Client i's directions at ``z = (x, y, v)``, on a batch of each level, are

    d_x = s_i grad_x f_i - J_i v      J_i = d^2 g_i / dx dy
    d_y = grad_y g_i
    d_v = H_i v - s_i grad_y f_i      H_i = d^2 g_i / dy^2

They join both levels, so that a client has one weight, that of its lower level: it is 1
or, by examples, its lower rows. ``s_i`` makes up for it: it is the client's weight in
the upper level over that in the lower one. The means are then those of the problem, the
upper objective being scaled by a constant that the steps of x absorb; where all clients
have rows of both levels and count the same, ``s_i = 1``. A client without lower rows
takes no step and does not count.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from fad.estimators import Bilevel, Client, Split


class Variables(NamedTuple):
    """The server's variables, or a direction or a step size for each."""

    x: Any
    y: Any
    v: Any

    @property
    def params(self) -> Any:
        """Both levels."""
        return self.x, self.y


Oracle = Callable[[Client, Variables, jax.Array], Variables]  # (client, z, s_i)


def exact(client: Client, z: Variables, share: jax.Array) -> Variables:
    """Return the client's directions, with one Hessian-vector product."""
    _, (f_x, f_y) = client.f_xy(z.x, z.y)
    slopes = jax.grad(client.g, (0, 1))
    (_, g_y), (jv, hv) = jax.jvp(lambda y: slopes(z.x, y), (z.y,), (z.v,))
    f_x, f_y = times(share, (f_x, f_y))
    return Variables(x=subtract(f_x, jv), y=g_y, v=subtract(hv, f_y))


def init(
    init_x: Callable[[jax.Array], Any], init_y: Callable[[jax.Array], Any]
) -> Callable[[jax.Array], Variables]:
    """Return ``init(key)``, which begins with ``v = 0``."""

    def begin(key):
        for_x, for_y = jax.random.split(key)
        y = init_y(for_y)
        return Variables(init_x(for_x), y, times(0, y))

    return begin


def share_of(client: Client) -> jax.Array:
    """Return ``s_i: []``, the client's upper weight over its lower one."""
    lower, upper = (jnp.sum(batches.mask) for batches in client.split)
    if client.problem.weighting == "uniform":
        lower, upper = lower > 0, upper > 0
    dtype = jnp.result_type(float)
    return upper.astype(dtype) / jnp.maximum(lower.astype(dtype), 1)


def steps_of(client: Client) -> jax.Array:
    """Return ``tau_i: []``, the client's lower batches with real rows, as a float."""
    taken = client.split.lower.mask.any(axis=1)
    return taken.sum().astype(jnp.result_type(float))


def each_batch(
    client: Client, step: Callable[[Any, Client, jax.Array], Any], carry: Any
) -> Any:
    """Fold ``step(carry, client on a batch, s_i)`` over a client's lower batches.

    Upper batches with real rows are taken in turn. A lower batch of padding is no step.
    """
    lower, upper = client.split
    share = share_of(client)
    real = upper.mask.any(axis=1)
    order, count = jnp.argsort(~real), jnp.maximum(real.sum(dtype=jnp.int32), 1)

    def one(carry, k):
        batch = Split(_at(lower, k), _at(upper, order[k % count]))
        key = None if client.key is None else jax.random.fold_in(client.key, k)
        new = step(carry, dataclasses.replace(client, split=batch, key=key), share)
        taken = lower.mask[k].any()
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, carry), None

    numbers = jnp.arange(lower.mask.shape[0], dtype=jnp.int32)
    return jax.lax.scan(one, carry, numbers)[0]


def walk(
    client: Client, oracle: Oracle, z: Variables, lrs: Variables
) -> tuple[Variables, Variables]:
    """Return where a client's local steps from z end, and the sum of its directions."""

    def step(carry, own, share):
        z, sums = carry
        d = oracle(own, z, share)
        return move(z, d, lrs), add(sums, d)

    return each_batch(client, step, (z, times(0, z)))


class Round(NamedTuple):
    """Means over the clients of one round."""

    sums: Variables  # of the local directions, summed over the steps
    steps: jax.Array  # [], the number of local steps
    value: jax.Array  # [], the upper objective at the variables sent

    def metrics(self) -> dict[str, jax.Array]:
        """Return what the round tells; norms are of means over local steps."""
        mean = times(1 / jnp.maximum(self.steps, 1), self.sums)
        return {"upper_loss": self.value} | norms(mean)


def local_steps(
    problem: Bilevel,
    oracle: Oracle,
    z: Variables,
    lrs: Variables,
    cohort: fad.AtClients[Split],
    key: jax.Array,
    *,
    normalise: bool = False,
) -> Round:
    """Run one round in which clients step along their directions from z.

    Args:
        problem: The problem.
        oracle: The directions.
        z: Where the clients start.
        lrs: Their steps.
        cohort: The clients, one step per lower batch.
        key: The round's key.
        normalise: Divide a client's sum by its steps, and multiply the mean by theirs.
    """

    def work(client):
        _, sums = walk(client, oracle, z, lrs)
        steps = steps_of(client)
        if normalise:
            sums = times(1 / jnp.maximum(steps, 1), sums)
        return (sums, steps), client.f(z.x, z.y)

    (sums, steps), value = fad.estimators.round_means(problem, work, cohort, key)
    return Round(times(steps, sums) if normalise else sums, steps, value)


def norms(d: Variables) -> dict[str, jax.Array]:
    """Return the metrics of the three directions."""
    names = ("hypergradient", "lower_residual", "linear_residual")
    return {n: optax.tree.norm(part) for n, part in zip(names, d, strict=True)}


def move(z: Variables, d: Variables, lrs: Variables, *, scale: Any = 1) -> Variables:
    """Return ``z - scale lr d``, each variable with its own lr."""
    parts = zip(z, d, lrs, strict=True)
    return Variables._make(
        subtract(a, times(scale, times(lr, b))) for a, b, lr in parts
    )


def add(a: Any, b: Any) -> Any:
    """Return ``a + b``."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Any, b: Any) -> Any:
    """Return ``a - b``."""
    return jax.tree.map(jnp.subtract, a, b)


def times(scale: Any, tree: Any) -> Any:
    """Return ``scale tree`` in the dtypes of the tree."""
    return jax.tree.map(lambda a: jnp.asarray(scale, a.dtype) * a, tree)


def _at(batches: fad.local.Batches, k: jax.Array) -> fad.local.Batches:
    """Return one batch."""
    rows, mask = jax.tree.map(lambda a: a[k][None], (batches.examples, batches.mask))
    return fad.local.Batches(rows, mask, batches.client)
