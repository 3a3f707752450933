"""What the tests of RABO and RAFBO share: a network, its clients, and masks.

The second version keeps full arrays and multiplies them by masks, in plain JAX.
"""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fad
from algorithms._pruned import Tier
from fad.estimators import Bilevel, Split
from fad.submodels import kept
from tests.algorithms.bilevel_loops import LRS, ordered

SIZES = (3, 6, 2)  # features, hidden units, outputs
DELTA = 5e-3
RATES = ordered(LRS)


def whole(problem):
    """A tier of clients that hold everything."""
    return Tier(problem, lambda z, rounds, key: lambda split: (None, None))


def outputs(x, y, a):
    """A network of one hidden layer, the lower level's last layer on top."""
    return jnp.tanh(a @ x["w"] + x["b"][None]) @ y["w"]


def lower(x, y, e):
    """The squared error, and a penalty."""
    penalty = jnp.sum(y["w"] ** 2) / 10
    return jnp.sum((outputs(x, y, e["a"]) - e["t"]) ** 2, 1) + penalty


def upper(x, y, e):
    """The squared error."""
    return jnp.sum((outputs(x, y, e["a"]) - e["t"]) ** 2, 1)


def network(sizes=SIZES, **fields):
    """The task of a network of hidden units, in any width."""
    features, hidden, classes = sizes
    rng = np.random.default_rng(3)
    x = {"w": rng.normal(size=(features, hidden)), "b": rng.normal(size=hidden)}
    y = {"w": rng.normal(size=(hidden, classes))}
    rows = {"a": np.zeros((2, features)), "t": np.zeros((2, classes))}
    return SimpleNamespace(
        problem=Bilevel(upper, lower),
        init_upper=lambda key: jax.tree.map(jnp.asarray, x),
        init_lower=lambda key: jax.tree.map(jnp.asarray, y),
        lower=SimpleNamespace(examples=rows),
        upper=SimpleNamespace(examples=rows),
        at_width=lambda w: network((features, kept(hidden, w), classes)),
        **{"upper_keys": None, **fields},
    )


def arrays(clients=4, steps=2, sizes=SIZES, batch=3):
    """The clients' examples of both levels, ``[n, steps, batch, *]``."""
    rng = np.random.default_rng(5)

    def level(steps):
        return {
            "a": jnp.asarray(rng.normal(size=(clients, steps, batch, sizes[0]))),
            "t": jnp.asarray(rng.normal(size=(clients, steps, batch, sizes[2]))),
        }

    return level(steps), level(1)


def cohort_of(levels, real=None):
    """The clients as a cohort; ``real: [n]`` says who has rows."""

    def batches(examples):
        mask = jnp.ones(examples["a"].shape[:3], bool)
        if real is not None:
            mask &= jnp.asarray(real, bool)[:, None, None]
        return fad.local.Batches(examples, mask, jnp.arange(len(mask)))

    return fad.AtClients(Split(*map(batches, levels)))


def start():
    """The variables at the start: x, y and v."""
    task = network()
    x, y = task.init_upper(None), task.init_lower(None)
    return x, y, jax.tree.map(jnp.zeros_like, y)


def masks(chosen):
    """Masks of x, y and v, ``[n, *]``, from each client's hidden units."""
    units = np.zeros((len(chosen), SIZES[1]))
    for i, own in enumerate(chosen):
        units[i, np.asarray(own)] = 1
    x = {"w": np.repeat(units[:, None], SIZES[0], 1), "b": units}
    y = {"w": np.repeat(units[:, :, None], SIZES[2], 2)}
    return x, y, y


def directions(z, low, up):
    """The directions of one client by central differences, all entries."""
    x, y, v = z

    def f(x, y):
        return upper(x, y, up).mean()

    def g(x, y):
        return lower(x, y, low).mean()

    f_x, f_y = jax.grad(f, (0, 1))(x, y)
    square = jnp.sum(v["w"] ** 2)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    e = {"w": DELTA * v["w"] / jnp.where(length > 0, length, 1.0)}
    (xa, ya), (xb, yb) = (
        jax.grad(g, (0, 1))(x, {"w": y["w"] + s * e["w"]}) for s in (1, -1)
    )
    scale = length / (2 * DELTA)
    d_x = jax.tree.map(lambda a, b, c: a - scale * (b - c), f_x, xa, xb)
    d_v = jax.tree.map(lambda a, b, c: scale * (b - c) - a, f_y, ya, yb)
    return d_x, jax.grad(g, 1)(x, y), d_v


@functools.partial(jax.jit, static_argnames="local")
def plainly(z, masks, levels, rates, *, local):
    """One round with masks: RAFBO where x moves at the clients, else RABO."""

    def client(mask, low, up):
        held = tree(lambda a, m: a * m, z, mask)
        sums = tree(jnp.zeros_like, z)
        all_up = tree(lambda a: a[0], up)
        for k in range(low["a"].shape[0]):
            d = directions(held, tree(lambda a, k=k: a[k], low), all_up)
            d = tree(lambda a, m: a * m, d, mask)
            sums = tree(jnp.add, sums, d)
            steps = (rates[0] if local else 0.0, *rates[1:])
            held = tuple(
                tree(lambda a, b, lr=lr: a - lr * b, *each)
                for lr, *each in zip(steps, held, d, strict=True)
            )
        if not local:
            rows = tree(lambda a: a.reshape(-1, a.shape[-1]), low)
            h = directions(held, rows, all_up)[0]
            sums = (tree(lambda a, m: a * m, h, mask[0]), *sums[1:])
        return sums

    sums = jax.vmap(client)(masks, *levels)

    def moved(a, lr, d, m):
        return a - lr * d.sum(0) / jnp.maximum(m.sum(0), 1)

    return tuple(
        tree(lambda a, d, m, lr=lr: moved(a, lr, d, m), *each)
        for lr, *each in zip(rates, z, sums, masks, strict=True)
    )


def tree(*args: Any):
    """``jax.tree.map``, of any trees."""
    return jax.tree.map(*args)


def steps_are_masked(make, tiers_of, *, local):
    """Assert that three rounds are those with masks, for windows that stand or roll."""
    levels = arrays()
    cohort, task = cohort_of(levels), network()
    for rule in ("static", "rolling"):
        tiers = tiers_of(task, rule)
        algorithm = make(tiers, task.init_upper, task.init_lower, **LRS)
        state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
        z = start()
        for t in range(3):
            state, metrics = step(state, cohort, jax.random.key(t))
            first = t if rule == "rolling" else 0
            half = (first + np.arange(3)) % 6
            each = masks([np.arange(6)] * 2 + [half] * 2)
            z = plainly(z, each, levels, RATES, local=local)
            assert (metrics["coverage_x"], metrics["coverage_y"]) == (2, 2)
            assert metrics["uncovered"] == 0
        for a, b in zip(jax.tree.leaves(state.z), jax.tree.leaves(z), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        # The server sees sums, and of each client its weight alone.
        report = fad.check(algorithm.step, allow="decode")(
            state, cohort, jax.random.key(0)
        )
        assert {allowed.type for allowed in report.allowed} == {"f32[]"}
