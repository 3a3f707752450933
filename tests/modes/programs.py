"""Programs to differentiate: rounds over fresh cohorts, and their plain JAX twins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad

DIM, CLIENTS, ROWS = 4, 3, 5


class Program(NamedTuple):
    """A function of programs, the same in plain JAX, and arguments for both."""

    fn: Any
    plain: Any
    args: tuple


def local_loss(w, x):
    return jnp.mean((jnp.tanh(x @ w) - 0.3) ** 2)


def local_steps(w, lr, x):
    for _ in range(2):
        w = w - lr * jax.grad(local_loss)(w, x)
    return w


@fad.program
def one_round(w, h, data):
    def client(x):
        return local_steps(w, h["client"], x) - w

    return w + h["server"] * fad.mean(fad.map(client, data))


@fad.program
def evaluate(w, data):
    return fad.mean(fad.map(local_loss, fad.broadcast(w), data))


def data(seed, *lead):
    shape = (*lead, CLIENTS, ROWS, DIM)
    return jax.random.normal(jax.random.key(seed), shape)


def training(rounds: int, *, scan: bool = True) -> Program:
    """Some rounds, each over a cohort of its own, then the loss over another."""

    def fn(w, h, cohorts, test):
        if scan:
            w, _ = jax.lax.scan(lambda w, c: (one_round(w, h, c), None), w, cohorts)
        else:
            for r in range(rounds):
                w = one_round(w, h, jax.tree.map(lambda x, r=r: x[r], cohorts))
        return evaluate(w, test)

    def plain(w, h, cohorts, test):
        cohorts, test = cohorts.unsafe_gather(), test.unsafe_gather()
        for r in range(rounds):
            steps = jax.vmap(local_steps, (None, None, 0))(w, h["client"], cohorts[r])
            w = w + h["server"] * (jnp.mean(steps, 0) - w)
        return jnp.mean(jax.vmap(local_loss, (None, 0))(w, test))

    stacked = jax.tree.map(
        lambda *x: jnp.stack(x), *[fad.AtClients(data(r)) for r in range(rounds)]
    )
    h = {"server": jnp.asarray(0.8), "client": jnp.asarray(0.3)}
    args = (0.1 * jnp.arange(1.0, DIM + 1), h, stacked, fad.AtClients(data(99)))
    return Program(fn, plain, args)


def server_step(rounds: int, *, scan: bool = True) -> Program:
    """The loss after training as a function of the server step alone."""
    base = training(rounds, scan=scan)
    w, h, *rest = base.args

    def of(fn):
        return lambda step, *rest: fn(w, {**h, "server": step}, *rest)

    return Program(of(base.fn), of(base.plain), (h["server"], *rest))


def weighted(clients: int) -> Program:
    """The loss after one round whose clients have learned weights."""
    x = jax.random.normal(jax.random.key(5), (clients, ROWS, DIM))
    w = 0.1 * jnp.arange(1.0, DIM + 1)

    @fad.program
    def fn(weights, cohort):
        def client(x):
            return local_steps(w, 0.3, x)

        local = fad.map(client, cohort)
        return evaluate(fad.weighted_mean(local, weights), cohort)

    def plain(weights, cohort):
        weights, x = weights.unsafe_gather(), cohort.unsafe_gather()
        local = jax.vmap(lambda x: local_steps(w, 0.3, x))(x)
        mean = jnp.einsum("n,nd->d", weights, local) / weights.sum()
        return jnp.mean(jax.vmap(local_loss, (None, 0))(mean, x))

    weights = fad.AtClients(jnp.linspace(0.5, 1.5, clients))
    return Program(fn, plain, (weights, fad.AtClients(x)))
