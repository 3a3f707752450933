"""FetchSGD's sketch and PowerSGD's low rank: values, derivatives, what travels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import ConfigError, FadError
from fad.aggregators import chain
from fad.aggregators._count_sketch import count_sketch
from fad.aggregators._low_rank import low_rank
from fad.aggregators._qsgd import qsgd
from tests.aggregators.classical_runs import arguments, one_round, rounds
from tests.aggregators.compressed import (
    SIZE,
    check_derivative,
    check_values,
    draw,
    flat,
    mean,
    step_only,
    tree,
)

pytestmark = pytest.mark.once

ROWS, COLUMNS, K, MOMENTUM = 3, 6, 2, 0.6


def _hashes():
    """The cells and signs, which are random, as matrices ``[rows, columns, 8]``."""
    cells, signs = draw(
        lambda: jax.random.key_data(jax.random.split(jax.random.key(7)))
    )
    shape = (ROWS, SIZE)
    wrap = jax.random.wrap_key_data
    at = draw(lambda: jax.random.randint(wrap(cells), shape, 0, COLUMNS, jnp.int32))
    sign = draw(lambda: jax.random.rademacher(wrap(signs), shape, jnp.int8))
    return (at[:, None] == np.arange(COLUMNS)[None, :, None]) * sign[:, None] * 1.0


def _count_sketch(xp, d, w, e, carry, t, clients):
    momentum, kept = carry if isinstance(carry, tuple) else (MOMENTUM, carry)
    to_cells = _hashes()
    zeros = xp.zeros((ROWS, COLUMNS))
    velocity, error = (zeros, zeros) if kept is None else kept
    velocity = momentum * velocity + mean(xp, xp.einsum("rcj,nj->nrc", to_cells, d), w)
    error = error + velocity
    estimate = xp.sort(xp.einsum("rcj,rc->rj", to_cells, error), axis=0)[ROWS // 2]
    place = xp.argsort(xp.argsort(-abs(estimate)))
    step = xp.where(place < K, estimate, 0)
    filled = to_cells @ step
    kept = [xp.where(filled == 0, velocity, 0), error - filled]
    return step, e, kept if xp is np else (momentum, kept)


def _low_rank(xp, d, w, e, carry, t, clients):
    """Of rank 1, for a matrix ``[3, 2]`` and a vector sent as it is."""
    h, kept = carry if isinstance(carry, tuple) else (None, carry)
    if kept is None:
        key = lambda: jax.random.split(jax.random.key(7), 2)[0]  # noqa: E731
        kept = draw(lambda: jax.random.normal(key(), (2, 1), float))[:, 0]
    d = mean(xp, d, w)
    matrix = d[:6].reshape(3, 2)
    p = matrix @ kept
    size = xp.sqrt((p**2).sum())
    p = p / xp.where(size == 0, 1, size)
    q = matrix.T @ p
    step = xp.concatenate([(p[:, None] * q[None]).reshape(6), d[6:]])
    kept = xp.where(size == 0, kept, q)
    return step, e, kept if xp is np else (h, kept)


SKETCH = functools.partial(count_sketch, ROWS, COLUMNS, k=K, seed=7)
CASES = {
    "count_sketch": (lambda h: SKETCH(momentum=h), _count_sketch, MOMENTUM),
    "low_rank": (lambda h: low_rank(1, seed=7), _low_rank, 0.0),
}
EACH = pytest.mark.parametrize("name", CASES)


@EACH
@pytest.mark.usefixtures("x64")
def test_values_equal_numpy(name):
    make, reference, h = CASES[name]
    done, carry = check_values(make(h), reference, None)
    if name == "count_sketch":
        assert all(np.count_nonzero(flat(s)) <= K for s in done.steps)
        assert np.count_nonzero(flat(done.steps[-1])) == K  # nobody sent: from errors
        np.testing.assert_allclose(done.state[1], carry, rtol=1e-10, atol=1e-13)
    else:
        assert not flat(done.steps[-1]).any()
        np.testing.assert_allclose(done.state[1][0][:, 0], carry, rtol=1e-10)


@EACH
@pytest.mark.usefixtures("x64")
def test_derivative_equals_plain_jax(name):
    """By the clients' step, and by the momentum of the sketch."""
    make, reference, h = CASES[name]
    _, by_other = check_derivative(make, reference, None, other=h)
    assert (abs(by_other) > 1e-3) == (name == "count_sketch")


def test_what_travels():
    updates, weights = tree(np.zeros((6, SIZE), np.float32)), np.ones(6, np.float32)
    made = SKETCH()
    args, step = arguments(made, updates, weights), step_only(one_round(made))
    cost = fad.plan(step)(*args).cost()
    assert (cost.rounds, cost.bytes_up) == (1, 4 * ROWS * COLUMNS + 8)
    assert not fad.check(step)(*args).allowed
    made = low_rank(1)
    args, step = arguments(made, updates, weights), step_only(one_round(made))
    plan = fad.plan(step)(*args)
    # P [3, 1], the vector [2], a weight, whether it is finite; then Q [2, 1], a weight.
    assert [r.bytes_up for r in plan.rounds] == [4 * (3 + 2) + 8, 4 * 2 + 4]
    assert [r.bytes_down for r in plan.rounds] == [4 * 2, 4 * 3]
    assert plan.cost().same_cohort
    assert not fad.check(step)(*args).allowed


@pytest.mark.usefixtures("x64")
def test_a_sketch_finds_what_is_large():
    """Of 200 coordinates in 5 x 40 cells, beside many small ones."""
    rng = np.random.default_rng(0)
    update = 0.01 * rng.normal(size=200)
    update[[3, 50, 120]] = [5.0, -4.0, 3.0]
    made = count_sketch(5, 40, k=3)
    done = rounds(made, [update[None]] * 20, np.ones(1), [[0]] * 20)
    steps = np.asarray(done.steps)
    assert set(np.flatnonzero(steps[0])) == {3, 50, 120}
    np.testing.assert_allclose(steps[0, [3, 50, 120]], [5, -4, 3], atol=0.1)
    total = steps.sum(axis=0)[[3, 50, 120]]
    np.testing.assert_allclose(total, [100, -80, 60], rtol=0.05)


@pytest.mark.usefixtures("x64")
def test_low_rank_is_exact_where_the_mean_is_of_low_rank():
    """Each client's matrix is of full rank; three axes count as two; it warms up."""
    rng = np.random.default_rng(0)
    base = np.einsum("ar,rbc->abc", rng.normal(size=(6, 2)), rng.normal(size=(2, 4, 3)))
    noise = rng.normal(size=(6, 4, 3))
    apart, same = np.stack([base + noise, base - noise]), np.stack([base + noise] * 2)
    # Between them a matrix of rank 1, which leaves the second column as it was.
    updates = [apart, np.ones_like(apart), *[same] * 60]
    done = rounds(low_rank(2), updates, np.ones(2), [[0, 1]] * len(updates))
    np.testing.assert_allclose(done.steps[0], base, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(done.steps[1], 1, rtol=1e-10)
    # With the same matrix again and again its best approximation is found.
    left, values, right = np.linalg.svd((base + noise).reshape(6, 12))
    best = (left[:, :2] * values[:2]) @ right[:2]
    far = [np.linalg.norm(x.reshape(6, 12) - best) for x in done.steps]
    assert far[-1] < 1e-3 < 0.1 < far[2]


def test_low_rank_is_differentiable_without_content():
    made, zero = low_rank(2), jnp.zeros((5, 4))

    @fad.program
    def total(updates):
        state = made.init(zero)
        sent = fad.map(lambda d: made.client((), state, (), d, None)[0], updates)
        mean = made.combine(sent, fad.map(lambda d: jnp.ones(()), updates), made.total)
        return made.server((), state, mean, zero, None)[0].sum()

    gradient = jax.jit(jax.grad(total))
    for update in (zero, jnp.ones((5, 4)), 1e30 * jnp.eye(5, 4)):
        found = gradient(fad.AtClients(jnp.stack([update] * 2)))
        assert jnp.isfinite(found.unsafe_gather()).all()


@EACH
def test_a_tree_may_mix_its_dtypes(name):
    """And what is sent may be quantised."""
    make, _, h = CASES[name]
    updates = {
        "a": jnp.ones((2, 4, 3), jnp.bfloat16),
        "b": jnp.full((2,), 3.0, jnp.float32),
        "c": jnp.zeros((2, 0, 3), jnp.float16),
    }
    made = chain(make(h), qsgd(127)) if name == "count_sketch" else make(h)
    args = arguments(made, updates, np.ones(2, np.float32))
    step = jax.eval_shape(one_round(made), *args).step
    for x, y in zip(updates.values(), step.values(), strict=True):
        assert (x.shape[1:], x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: count_sketch(0, 5, k=1),
            r"count_sketch\(rows\): .* at least 1; got 0",
        ),
        (lambda: count_sketch(5, 2.5, k=1), r"\(columns\): expected .* got 2\.5"),  # type: ignore
        (
            lambda: count_sketch(5, 9, k=0),
            r"\(k=0\): expected k as an int of at least 1",
        ),
        (lambda: low_rank(0), r"low_rank\(rank\): expected rank as an int, at least 1"),
    ],
)
def test_what_is_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_a_sketch_cannot_find_more_than_there_is():
    made, updates = count_sketch(2, 3, k=9), np.ones((2, SIZE), np.float32)
    args = arguments(made, tree(updates), np.ones(2, np.float32))
    with pytest.raises(FadError, match=r"\(k=9\): .* 8 coordinates; expected k of at"):
        jax.eval_shape(one_round(made), *args)
