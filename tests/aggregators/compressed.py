"""What the tests of compression share: each aggregator beside a plain reference.

A reference is ``(xp, d, w, e, carry, t, clients) -> (step, e, carry)``: the step
``[8]`` from updates ``[n, 8]``, weights ``[n]``, memories ``[n, 8]``, what the server
keeps, and the number of the round and of its clients, from which randomness comes. With
``xp`` NumPy it gives values, with ``jax.numpy`` derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fad
from fad.aggregators import aggregate, chain, from_optax
from tests.aggregators.classical_runs import Rounds, rounds

SIZE, CLIENTS, COUNT = 8, 6, 20


def tree(x: Any) -> dict[str, Any]:
    """Turn ``[*n, 8]`` into a model of a matrix and a vector."""
    return {"a": x[..., :6].reshape(*x.shape[:-1], 3, 2), "b": x[..., 6:]}


def flat(made: Any, xp: Any = np) -> Any:
    """Turn it back."""
    a, b = made["a"], made["b"]
    return xp.concatenate([a.reshape(*a.shape[:-2], 6), b], axis=-1)


def mean(xp: Any, x: Any, w: Any) -> Any:
    """Return the weighted mean over the clients."""
    return xp.tensordot(w, x, 1) / xp.where(w.sum() == 0, 1, w.sum())


def chained(aggregator: Any) -> Any:
    """Return what the reference is compared with: half of its step."""
    return chain(from_optax(optax.sgd(0.5)), aggregator)


def keys(t: int, clients: Any) -> list[jax.Array]:
    """Return the keys that the chained aggregator's clients get in round ``t``."""
    own = [jax.random.fold_in(jax.random.key(t), int(c)) for c in clients]
    return [jax.random.fold_in(key, 1) for key in own]


def check_values(aggregator: Any, reference: Any, carry: Any) -> tuple[Rounds, Any]:
    """Compare 20 rounds with half of the clients, and return what came out of both.

    One client has no examples and one sends NaN every other round, which is excluded.
    In the last but one round a client is alone, in the last nobody is there.
    """
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=(CLIENTS, SIZE)) for _ in range(COUNT)]
    weights = np.array([1.0, 2.0, 0.0, 3.0, 0.5, 1.5])
    ids = [rng.permutation(CLIENTS)[:3] for _ in range(COUNT - 2)]
    ids += [np.array([2, 1, 2]), np.array([2, 2, 2])]
    for t in range(0, COUNT, 2):
        updates[t][3, t % SIZE] = np.nan
    made, trees = chained(aggregator), [tree(u) for u in updates]
    done = rounds(made, trees, weights, ids, nonfinite="exclude")
    e = np.zeros((CLIENTS, SIZE))
    for t, (some, step) in enumerate(zip(ids, done.steps, strict=True)):
        bad = np.isnan(updates[t][some]).any(axis=1)
        assert float(done.metrics[t]["excluded_clients"]) == bad.sum()
        w = np.where(bad, 0, weights[some])
        d = np.where(w[:, None] > 0, updates[t][some], 0)
        expected, new, carry = reference(np, d, w, e[some], carry, t, some)
        e[some] = np.where(w[:, None] > 0, new, e[some])
        np.testing.assert_allclose(flat(step), expected / 2, rtol=1e-10, atol=1e-13)
    if memories := jax.tree.leaves(done.memories):
        np.testing.assert_allclose(memories[0], e, rtol=1e-10, atol=1e-13)
        assert (e.any(axis=1) == (weights > 0)).all()
    return done, carry


def check_derivative(make: Any, reference: Any, carry: Any, *, other: float) -> Any:
    """Compare derivatives after 3 rounds by the clients' step and one more number.

    ``make(h)`` makes the aggregator; ``reference`` takes the carry ``(h, carry)``.
    """
    centres = jnp.asarray(np.random.default_rng(1).normal(size=(CLIENTS, SIZE)))
    weights = jnp.array([1.0, 2.0, 1.0, 3.0, 0.5, 1.5])
    start = jnp.full(SIZE, 0.5)

    @fad.program
    def loss(args, data):
        lr, h = args
        made, x = chained(make(h)), tree(start)
        state = made.init(x)
        memories = fad.map(lambda c: made.init_client(x), data)
        clients = fad.AtClients(jnp.arange(CLIENTS))
        for t in range(3):
            done = aggregate(
                made,
                fad.map(lambda c, x=x: tree(_pull(x, c, lr)), data),
                fad.AtClients(weights),
                theta=made.init_theta(None),
                state=state,
                memories=memories,
                params=x,
                key=jax.random.key(t),
                clients=clients,
            )
            x = jax.tree.map(jnp.add, x, done.step)
            state, memories = done.state, done.memories
        return fad.mean(fad.map(lambda c: jnp.sum((flat(x, jnp) - c) ** 2), data))

    def plain(args):
        lr, h = args
        x, e, kept = start, jnp.zeros((CLIENTS, SIZE)), carry
        for t in range(3):
            d = -lr * jnp.tanh(x[None] - centres)
            some = np.arange(CLIENTS)
            step, e, (_, kept) = reference(jnp, d, weights, e, (h, kept), t, some)
            x = x + step / 2
        return jnp.mean(jnp.sum((x[None] - centres) ** 2, axis=1))

    args = (0.9, other)
    found = jax.jit(jax.value_and_grad(loss))(args, fad.AtClients(centres))
    expected = jax.jit(jax.value_and_grad(plain))(args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12),
        found,
        expected,
    )
    assert abs(expected[1][0]) > 1e-3
    return expected[1]


def draw(make: Any) -> np.ndarray:
    """Return what ``make()`` draws as NumPy's, also where JAX is tracing."""
    with jax.ensure_compile_time_eval():
        return np.asarray(make())


def _pull(x: Any, c: Any, lr: Any) -> Any:
    return -lr * jnp.tanh(flat(x, jnp) - c)


def step_only(one: Any) -> Any:
    """Return the program whose one result is the step."""
    return lambda *args: one(*args).step
