"""LFedNest: FedNest's outer steps with each client's own hypergradient, in one round.

Tarzanagh et al., ICML 2022, Algorithm 5 (LFedOut). Client i takes local steps

    p_i = step sum_n (I - step H_i)^n grad_y f_i,   h_i = grad_x f_i - J_i p_i
    x_i <- x_i - alpha h_i                                        once per upper batch

with all derivatives its own, at ``(x_i, y)``; then x <- mean_i x_i.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from fad.estimators import Client, cohort_at


class State(NamedTuple):
    """The server's state."""

    x: Any
    y: Any

    @property
    def params(self) -> Any:
        """Both levels."""
        return self.x, self.y


def local_epoch(problem, solver, inner_steps, series, lr, keep, groups):
    """Return FedInn and LFedOut: steps of x along local hypergradients, one round."""

    def epoch(state, cohort, key):
        x, y = state
        cohorts = in_groups(cohort, groups)
        fixed, kept = problem, cohorts
        if keep:
            fixed, kept = fad.estimators.hoist(problem, x, y, cohorts)

        def loss(y, *examples):
            return fixed.lower(x, y, *examples)

        def inner(carry, t):
            own = jax.random.fold_in(key, t) if problem.random else None
            return solver.step(loss, *carry, cohort_at(kept, t).lower, own), None

        start = y, solver.init(y, cohort.lower)
        (y, _), _ = jax.lax.scan(inner, start, jnp.arange(inner_steps))

        def work(client: Client):
            moved = _descend(client, x, y, lr, series, key)
            delta = jax.tree.map(jnp.subtract, moved, x)
            return client.g_y(x, y), (client.f(x, y), delta)

        own = cohort_at(cohorts, inner_steps)
        q, (value, delta) = fad.estimators.round_means(problem, work, own, key)
        x = jax.tree.map(jnp.add, x, delta)
        metrics = {
            "upper_loss": value,
            "hypergradient": optax.tree.norm(delta) / lr,  # over all local steps
            "lower_residual": optax.tree.norm(q),
        }
        return State(x, y), metrics

    return epoch


def in_groups(cohort: Any, groups: int) -> Any:
    """Divide a cohort among the rounds of an epoch: ``[n, *] -> [groups, n / groups]``.

    Raises:
        FadError: If that leaves clients over.
    """
    n = cohort.num_clients
    if n % groups:
        raise fad.FadError(
            f"groups: {n} clients cannot be divided into {groups} groups alike. Choose "
            f"a cohort of {n - n % groups + groups}."
        )
    return jax.tree.map(lambda a: a.reshape(groups, -1, *a.shape[1:]), cohort)


def _descend(client, x, y, lr, series, key):
    """Take a client's steps of x, one per upper batch, along its own hypergradient."""
    batches, terms = client.split.upper, series["terms"]
    length = jnp.array(terms)
    if series["random"]:
        own = fad.local.client_key(jax.random.fold_in(key, 2**31 - 1), batches.client)
        length = jax.random.randint(own, (), 0, terms)

    def step(x, rows):
        examples, mask = jax.tree.map(lambda a: a[None], rows)
        batch = fad.local.Batches(examples, mask, batches.client)
        own = dataclasses.replace(client, split=client.split._replace(upper=batch))
        _, (f_x, b) = own.f_xy(x, y)
        p = _series(lambda v: own.hessian(x, y, v), b, series, length)
        taken = lr * batch.mask.any()
        new = jax.tree.map(
            lambda a, d, j: a - jnp.asarray(taken, a.dtype) * (d - j),
            *(x, f_x, own.cross(x, y, p)),
        )
        return new, None

    return jax.lax.scan(step, x, (batches.examples, batches.mask))[0]


def _series(product, b, series, length):
    """Return ``step sum_j (I - step H)^j b``, or one random term times their number."""
    terms, scale = series["terms"], series["step"]

    def one(carry, j):
        total, p = carry
        new = jax.tree.map(lambda a, h: a - scale * h, p, product(p))
        p = jax.tree.map(lambda a, b: jnp.where(j < length, a, b), new, p)
        return (jax.tree.map(jnp.add, total, p), p), None

    p = jax.tree.map(lambda a: scale * a, b)
    count = terms - 1 if series["random"] else terms
    (total, p), _ = jax.lax.scan(one, (p, p), jnp.arange(count))
    return jax.tree.map(lambda a: terms * a, p) if series["random"] else total
