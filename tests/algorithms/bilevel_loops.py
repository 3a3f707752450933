"""What the tests of single-loop bilevel algorithms share: data, runs, a second version.

The second version is for quadratics alone, in NumPy, or in jax.numpy for derivatives.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fad
from fad.estimators import Split
from tests.estimators.bilevel_truth import X, Y, make_data

CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}
LRS: Any = {"lower_lr": 0.3, "linear_lr": 0.2, "upper_lr": 0.1}
FAST: Any = {"lower_lr": 0.5, "linear_lr": 0.5, "upper_lr": 0.4}
START = (lambda key: jnp.asarray(X)), (lambda key: jnp.asarray(Y))
Z = X, Y, np.zeros(4)  # x, y and v, as all directions below


def setting(heterogeneity: float | None = 1.0, steps=1, clients=4):
    """Data, problem and cohort; with heterogeneity None all clients are one."""
    data = make_data(heterogeneity or 0.0, clients)
    if heterogeneity is None:
        same = jax.tree.map(lambda a: np.repeat(a[:1], clients, 0), data.clients)
        data = fad.data.Quadratics(same)
    problem, cohorts = fad.data.quadratic_problem(data, steps=steps)
    return data, problem, jax.tree.map(lambda a: a[0], cohorts)


def masked(cohort, lower=None, upper=None):
    """Mark rows as padding, with NaN in it; masks are ``[n, steps]``."""
    split = cohort.unsafe_gather()

    def one(batches, real):
        if real is None:
            return batches
        real = jnp.asarray(real, bool)[..., None]

        def padded(a):
            wide = real.reshape(*real.shape, *[1] * (a.ndim - 3))
            return jnp.where(wide, a, jnp.full_like(a, jnp.nan))

        return fad.local.Batches(
            jax.tree.map(padded, batches.examples), real, batches.client
        )

    return fad.AtClients(Split(one(split.lower, lower), one(split.upper, upper)))


def rows_in_one_batch(cohort, lower, upper):
    """A cohort whose clients have so many rows of each level, in one batch."""

    def one(batches, counts):
        def tiled(a):
            tail = a.shape[3:]
            return jnp.broadcast_to(a[:, :1, :1], (len(counts), 1, 3, *tail))

        mask = jnp.asarray(np.arange(3) < counts[:, None, None])
        return fad.local.Batches(
            jax.tree.map(tiled, batches.examples), mask, batches.client
        )

    split = cohort.unsafe_gather()
    return fad.AtClients(Split(one(split.lower, lower), one(split.upper, upper)))


def run(algorithm, cohort, steps, state=None):
    """The state after some steps and the metrics of the last."""
    key = jax.random.key(0)
    state = algorithm.init(key) if state is None else state

    @jax.jit
    def all_steps(state, cohort, keys):
        def one(state, key):
            return algorithm.step(state, cohort, key)

        return jax.lax.scan(one, state, keys)

    state, metrics = all_steps(state, cohort, jax.random.split(key, steps))
    return state, jax.tree.map(lambda a: a[-1], metrics)


def cost(algorithm, cohort):
    """The plan's totals of a step, which must reveal sums alone."""
    args = algorithm.init(jax.random.key(0)), cohort, jax.random.key(0)
    assert not fad.check(algorithm.step)(*args).allowed
    return fad.plan(algorithm.step)(*args).cost()


def directions(xp, c, z, share=1.0):
    """The clients' ``d_x, d_y, d_v`` at ``z``, of their own ``[n, *]`` variables."""
    x, y, v = (xp.broadcast_to(a, (len(c.a), a.shape[-1])) for a in z)

    def dot(matrix, vector):
        return xp.einsum("nij,nj->ni", matrix, vector)

    def transposed(matrix, vector):
        return xp.einsum("nji,nj->ni", matrix, vector)

    f_x = transposed(c.K, y) + dot(c.H, x) + c.h
    f_y = dot(c.F, y) + dot(c.K, x) + c.f
    g_y = dot(c.A, y) + dot(c.C, x) + c.a
    return share * f_x - transposed(c.C, v), g_y, dot(c.A, v) - share * f_y


def mean_upper(data, z):
    """The mean upper objective."""
    return data.mean.upper(z[0], z[1])


def descend(z, d, lrs, scale=1.0):
    """``z - scale lr d``, by ``(upper_lr, lower_lr, linear_lr)``."""
    return tuple(a - scale * lr * b for a, b, lr in zip(z, d, lrs, strict=True))


def ordered(lrs):
    """The steps of x, y and v."""
    return lrs["upper_lr"], lrs["lower_lr"], lrs["linear_lr"]


def local_sums(xp, c, z, lrs, taus):
    """The clients' sums of directions ``[n, *]`` over ``taus`` local steps."""
    sums = tuple(xp.zeros((len(taus), len(a))) for a in z)
    z = tuple(xp.broadcast_to(a, (len(taus), len(a))) for a in z)
    for k in range(max(taus)):
        taken = (xp.asarray(taus) > k)[:, None]
        d = tuple(xp.where(taken, a, 0) for a in directions(xp, c, z))
        z, sums = (
            descend(z, d, lrs),
            tuple(a + b for a, b in zip(sums, d, strict=True)),
        )
    return sums


def mean(xp, values, weights):
    """Weighted means over clients."""
    w = xp.asarray(weights, float) / sum(weights)
    return tuple(xp.einsum("n,ni->i", w, a) for a in values)


def equals(state, z):
    """Assert that the state holds these variables."""
    found = getattr(state, "z", state)
    for a, b in zip(found, z, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)
    assert state.params[0] is state.x
    assert state.params[1] is state.y


def same(left, right, **tolerance):
    """Assert that two trees hold the same numbers."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or CLOSE))


def reaches_the_optimum(make, options=None, *, heterogeneity=1.0, steps=1, rounds=300):
    """Assert that an algorithm solves the bilevel problem."""
    data, problem, cohort = setting(heterogeneity, steps)
    state, metrics = run(
        make(problem, *START, **{**FAST, **(options or {})}), cohort, rounds
    )
    best = data.optimum()
    np.testing.assert_allclose(state.x, best, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(state.y, data.solution(best), rtol=1e-7, atol=1e-7)
    value = mean_upper(data, (best, data.solution(best)))
    np.testing.assert_allclose(metrics["upper_loss"], value, rtol=1e-7)
    assert metrics["hypergradient"] < 1e-7
    assert metrics["lower_residual"] < 1e-7


def copies_of_one_client_are_one(make, options=None):
    """Assert that copies of a client do what it does alone."""
    _, problem, cohort = setting(None, steps=3)
    alone = jax.tree.map(lambda a: a[:1], cohort)
    options = {**LRS, **(options or {})}
    same(*(run(make(problem, *START, **options), c, 3) for c in (cohort, alone)))


def gradient_is_plain(make, plainly, options=None, *, steps=1, at=0.2):
    """Assert the gradient of the loss after 3 steps by the step of x.

    ``plainly(c, z, lrs)`` takes one step more, in jax.numpy; z is what it carries.
    """
    data, problem, cohort = setting(steps=steps, clients=2)
    c, average = (jax.tree.map(jnp.asarray, a) for a in (data.clients, data.mean))

    def by_fad(lr):
        algorithm = make(problem, *START, **{**LRS, **(options or {}), "upper_lr": lr})

        def one(state, key):
            return algorithm.step(state, cohort, key)[0], None

        keys = jax.random.split(jax.random.key(1), 3)
        state, _ = jax.lax.scan(one, algorithm.init(jax.random.key(0)), keys)
        return average.upper(*state.params)

    def by_hand(lr):
        z, memory = tuple(map(jnp.asarray, Z)), None
        for _ in range(3):
            z, memory = plainly(c, z, ordered({**LRS, "upper_lr": lr}), memory)
        return average.upper(z[0], z[1])

    got, want = (jax.jit(jax.value_and_grad(f))(at) for f in (by_fad, by_hand))
    same(got, want)
    assert abs(want[1]) > 1e-3


def survives_hard_data(make, options=None):
    """Assert what holds for clients that are empty or alone, for NaN, and dtypes."""
    options = {**LRS, **(options or {})}
    _, problem, cohort = setting(steps=2)
    algorithm = make(problem, *START, **options)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)

    def after(cohort):
        return step(state, cohort, jax.random.key(0))

    nobody = masked(cohort, np.zeros((4, 2)), np.zeros((4, 1)))
    found, metrics = after(nobody)
    same(found.params, (X, Y))
    assert all(np.isfinite(a) for a in jax.tree.leaves(metrics))

    # An empty client is no client.
    some = masked(cohort, [[1, 1], [0, 0], [1, 0], [1, 1]], [[1], [0], [1], [1]])
    fewer = jax.tree.map(lambda a: a[np.array([0, 2, 3])], some)
    same(after(some)[0].params, after(fewer)[0].params)

    def value(lr):
        maker = make(problem, *START, **{**options, "upper_lr": lr})
        return maker.step(state, some, jax.random.key(0))[0].x.sum()

    assert np.isfinite(jax.jit(jax.grad(value))(0.1))

    split = cohort.unsafe_gather()
    upper = split.upper._replace(
        examples=jax.tree.map(lambda a: a.at[0].set(jnp.nan), split.upper.examples)
    )
    found, _ = after(fad.AtClients(split._replace(upper=upper)))
    assert np.isnan(found.x).all()  # It is seen, not hidden.
    keeps_dtype(make, options)


def keeps_dtype(make, options, dtype=jnp.bfloat16):
    """Assert that x and y stay as they begin, whatever the default precision."""
    _, problem, cohort = setting(steps=2)
    cohort = jax.tree.map(
        lambda a: a.astype(dtype) if a.dtype == jnp.float64 else a, cohort
    )
    start = [lambda key, f=f: f(key).astype(dtype) for f in START]
    state, _ = run(make(problem, *start, **options), cohort, 2)
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
    assert all(np.isfinite(a.astype(float)).all() for a in state.params)


def random_losses_get_keys(make, options=None):
    """Assert that the same key gives the same step, and another key another."""
    _, problem, cohort = setting(steps=2)

    def noisy(loss):
        def rows(x, y, examples, key):
            return loss(x, y, examples) + jax.random.normal(key, y.shape) @ y

        return rows

    upper, lower = noisy(problem.upper), noisy(problem.lower)
    problem = problem._replace(upper=upper, lower=lower, random=True)
    algorithm = make(problem, *START, **{**LRS, **(options or {})})
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    one, again, other = (
        step(state, cohort, jax.random.key(k))[0].params for k in (1, 1, 2)
    )
    same(one, again)
    assert not np.allclose(one[1], other[1])


def builds(module, config=None):
    """Assert that a config builds for what a bilevel task has."""
    _, problem, cohort = setting(clients=2)
    task = SimpleNamespace(problem=problem, init_upper=START[0], init_lower=START[1])
    algorithm = module.build(config or module.Config(), task)
    state, metrics = run(algorithm, cohort, 1)
    assert not np.array_equal(state.x, X)
    assert not np.array_equal(state.y, Y)
    assert {"upper_loss", "hypergradient", "lower_residual"} <= set(metrics)
    assert all(np.shape(m) == () for m in metrics.values())
