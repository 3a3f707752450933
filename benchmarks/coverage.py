"""RABO: rounds to a small gradient against how many clients hold a coordinate.

The paper's rate is ``1 / sqrt(C_x* Q)`` after Q rounds, with ``C_x*`` the least number
of clients that hold a coordinate of x in a round: the rounds to a given mean squared
gradient should fall as ``1 / C_x*``, and the coverage ``C_y*`` of y should not matter.
"""

import functools
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fad
from algorithms._pruned import State
from algorithms._pruned_lifted import lifted
from algorithms.rabo import rabo
from benchmarks._coverage_page import write_page
from benchmarks._machine import machine
from benchmarks._report import results_folder

CLIENTS, SIZE, SEEDS, ROUNDS = 8, 16, 5, 9000
COUPLING, WAVE, SPREAD = 0.3, 0.5, 0.3
NOISE = (1.0, 1.0, 2.0)  # of y below, of y above, of the slope of x
COUNTS = (1, 2, 4, 8)
TARGET = 0.01  # of the mean squared gradient over the rounds so far, by coordinate
STEPS = tuple(round(0.08 * 2.0 ** (-k / 2), 4) for k in range(10))
LOWER_LR = 0.1
VARIED = {  # the coverages (C_x*, C_y*) of each series
    "of x and of y": [(c, c) for c in COUNTS],
    "of x, y with all": [(c, CLIENTS) for c in COUNTS],
    "of y, x with one": [(1, c) for c in COUNTS],
}


class Problem(NamedTuple):
    """One problem of the family: ``near: [d]``, and ``shifts: [n, d]`` of clients."""

    near: jax.Array
    shifts: jax.Array


def draw(key: jax.Array) -> Problem:
    """Draw a problem: y is wanted 1 to 2 away from where it is."""
    sign, size, shift = jax.random.split(key, 3)
    near = jax.random.uniform(size, (SIZE,), minval=1.0, maxval=2.0)
    near = near * jax.random.rademacher(sign, (SIZE,), near.dtype)
    shifts = SPREAD * jax.random.normal(shift, (CLIENTS, SIZE))
    return Problem(near, shifts - shifts.mean(0, keepdims=True))


def losses() -> fad.estimators.Bilevel:
    """Return the losses; an example is one sample of the noise at one client."""

    def lower(x, y, e):
        off = y[None] - COUPLING * jnp.tanh(x)[None] - e["shift"] - e["noise"]
        return jnp.sum(off**2, axis=1) / 2

    def upper(x, y, e):
        off = y[None] - e["near"] - e["noise"]
        wave = WAVE * jnp.sum(x**2 / (1 + x**2)) + e["slope"] @ x
        return jnp.sum(off**2, axis=1) / 2 + wave

    return fad.estimators.Bilevel(upper=upper, lower=lower)


def gradient(problem: Problem, x: jax.Array) -> jax.Array:
    """Return that of the bilevel objective; the clients' shifts sum to 0."""
    y, slope = COUPLING * jnp.tanh(x), COUPLING / jnp.cosh(x) ** 2
    return WAVE * 2 * x / (1 + x**2) ** 2 + slope * (y - problem.near)


def cohort(problem: Problem, key: jax.Array) -> fad.AtClients:
    """Return all clients with one fresh sample of each level, ``[n, 1, 1, d]``."""
    shape = (CLIENTS, 1, 1, SIZE)
    noise = jax.random.normal(key, (3, *shape))
    below, above, slope = (s * own for s, own in zip(NOISE, noise, strict=True))
    mask, number = jnp.ones(shape[:3], bool), jnp.arange(CLIENTS, dtype=jnp.int32)

    def level(**examples):
        return fad.local.Batches(examples, mask, number)

    shifts = problem.shifts.reshape(shape)
    lower = level(shift=shifts, noise=below)
    near = jnp.broadcast_to(problem.near, shape)
    upper = level(near=near, noise=above, slope=slope)
    return fad.AtClients(fad.estimators.Split(lower, upper))


def keys_of(cover_x: int, cover_y: int) -> Any:
    """Return keys by which each coordinate is held by so many clients in each round.

    The coordinates are 8 blocks; in round r client i holds the blocks r + i, r + i + 1
    and so on, as many as a coordinate's clients.
    """

    def keys(z, rounds, key):
        del z, key

        def of(split):
            first = split.lower.client + rounds

            def held(count):
                blocks = (first + jnp.arange(count, dtype=jnp.int32)) % CLIENTS
                inside = jnp.arange(SIZE // CLIENTS, dtype=jnp.int32)
                return (blocks[:, None] * (SIZE // CLIENTS) + inside[None]).reshape(-1)

            return held(cover_x), held(cover_y)

        return of

    return keys


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(cover_x: int, cover_y: int, rounds: int, seeds: jax.Array) -> jax.Array:
    """Return the rounds to the target, ``[seeds, steps]``; ``rounds + 1`` if none."""
    zeros = jnp.zeros(SIZE)
    tier = lifted(losses(), keys_of(cover_x, cover_y), (zeros, zeros))

    def algorithm(upper_lr):
        rates = {"lower_lr": LOWER_LR, "linear_lr": LOWER_LR, "upper_lr": upper_lr}
        return rabo([tier], lambda key: zeros, lambda key: zeros, **rates)

    def step(upper_lr, state, cohort, key):
        return algorithm(upper_lr).step(state, cohort, key)[0]

    # All runs are in the same round: their keys are the same.
    of_z = State._make((0, None))
    each = jax.vmap(step, (0, of_z, None, None), of_z)  # one seed's noise for all steps
    each = jax.vmap(each, (None, of_z, 0, 0), of_z)
    problems, streams = jax.vmap(
        lambda seed: (draw(jax.random.key(seed)), jax.random.key(seed + 1000))
    )(seeds)

    def one(carry, number):
        state, total, reached = carry
        slopes = jax.vmap(lambda p, x: jax.vmap(lambda x: gradient(p, x))(x))
        total = total + jnp.mean(slopes(problems, state.x) ** 2, axis=-1)
        there = (total / (number + 1) <= TARGET) & (reached > rounds)
        reached = jnp.where(there, number + 1, reached)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(streams)
        cohorts = jax.vmap(cohort)(problems, keys)
        return (each(jnp.asarray(STEPS), state, cohorts, keys), total, reached), None

    shape = (len(seeds), len(STEPS))
    first = algorithm(1.0).init(streams[0])
    z = jax.tree.map(lambda a: jnp.broadcast_to(a, (*shape, *a.shape)), first.z)
    start = first._replace(z=z), jnp.zeros(shape), jnp.full(shape, rounds + 1)
    numbers = jnp.arange(rounds, dtype=jnp.int32)
    return jax.lax.scan(one, start, numbers)[0][2]


def main(*, rounds: int = ROUNDS, seeds: int = SEEDS) -> None:
    """Run all coverages, print, and write the page."""
    rows, began = [], time.perf_counter()
    numbers = jnp.arange(seeds)
    for pair in dict.fromkeys(pair for series in VARIED.values() for pair in series):
        reached = np.asarray(run(*pair, rounds, numbers))
        rows.append({"coverage": pair, "reached": reached.tolist()})
        print(*pair, reached.mean(0).round(), flush=True)
    found = {"rounds": rounds, "seeds": seeds, "target": TARGET, "steps": STEPS}
    seconds = round(time.perf_counter() - began)
    found |= {"seconds": seconds, "machine": machine(), "rows": rows}
    complete = (rounds, seeds) == (ROUNDS, SEEDS)
    path = results_folder(complete) / "coverage.json"
    path.write_text(json.dumps(found) + "\n")
    print(write_page(found, VARIED, complete=complete))
