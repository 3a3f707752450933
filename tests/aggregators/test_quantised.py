"""QSGD, and random rotation with uniform quantisation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import fad
from fad import ConfigError, FadError
from fad.aggregators import chain, combined
from fad.aggregators._clip import clip
from fad.aggregators._gaussian import gaussian_mean
from fad.aggregators._qsgd import decode, encode, qsgd
from fad.aggregators._random_k import random_k
from fad.aggregators._rotation import rotated_quantisation
from fad.aggregators._secure_sum import secure_sum
from fad.aggregators._top_k import top_k
from tests.aggregators.classical_runs import arguments, one_round, rounds
from tests.aggregators.compressed import (
    SIZE,
    check_derivative,
    check_values,
    draw,
    keys,
    mean,
    step_only,
    tree,
)

pytestmark = pytest.mark.once

LEVELS, BUCKET = 3, 4
BITS, BOUND = 4, 1.5
_BUCKETS = np.array([0, 0, 0, 0, 1, 1, 2, 2])  # of a matrix of 6 and a vector of 2


def _straight(xp, value, x):
    return value if xp is np else x + jax.lax.stop_gradient(value - x)


def _uniform(key):
    a, b = jax.random.split(key)
    rows = jax.random.uniform(a, (2, BUCKET), float).reshape(-1)
    return jnp.concatenate([rows[:6], jax.random.uniform(b, (1, 2), float)[0]])


def _qsgd(xp, d, w, e, carry, t, clients):
    u = draw(lambda: jnp.stack([_uniform(k) for k in keys(t, clients)]))
    norm = xp.sqrt(d**2 @ (_BUCKETS[:, None] == _BUCKETS[None]).astype(float))
    norm = norm.astype("float32").astype("float64")
    share = LEVELS * abs(d) / xp.where(norm == 0, 1, norm)
    level = xp.minimum(
        xp.floor(share) + (u < share - xp.floor(share)).astype(float), LEVELS
    )
    return mean(xp, _straight(xp, norm * xp.sign(d) * level / LEVELS, d), w), e, carry


def _rotated(xp, d, w, e, carry, t, clients):
    bound, kept = carry if isinstance(carry, tuple) else (BOUND, carry)
    levels, key = 2**BITS - 1, lambda: jax.random.fold_in(jax.random.key(7), t)
    signs = draw(lambda: jax.random.rademacher(key(), (SIZE,), float))
    turn = scipy.linalg.hadamard(SIZE) * signs[None] / math.sqrt(SIZE)
    u = draw(
        lambda: jnp.stack([jax.random.uniform(k, (SIZE,)) for k in keys(t, clients)])
    )
    z = d @ turn.T
    share = xp.clip((z + bound) / (2 * bound) * levels, 0, levels)
    level = xp.floor(share) + (u < share - xp.floor(share)).astype(float)
    there = (w > 0).astype(float)
    out = mean(xp, (abs(z) > bound).astype(float).mean(axis=1), there)
    kept = [*(kept or []), out] if xp is np else kept
    step = mean(xp, _straight(xp, level * 2 * bound / levels - bound, z), there) @ turn
    return step, e, kept if xp is np else (bound, kept)


ROTATED = functools.partial(rotated_quantisation, BITS, bound=BOUND, seed=7)
CASES = {
    "qsgd": (lambda: qsgd(LEVELS, bucket=BUCKET), _qsgd),
    "rotated": (ROTATED, _rotated),
}
EACH = pytest.mark.parametrize("name", CASES)


@EACH
@pytest.mark.usefixtures("x64")
def test_values_equal_numpy(name):
    make, reference = CASES[name]
    done, saturated = check_values(make(), reference, None)
    if name == "rotated":
        shown = [float(m["saturated_fraction"]) for m in done.metrics]
        np.testing.assert_allclose(shown, saturated, rtol=1e-6)
        assert 0.05 < np.mean(saturated) < 0.3


@EACH
@pytest.mark.usefixtures("x64")
def test_derivative_equals_plain_jax(name):
    """Straight through: by the clients' step, and none by the range."""
    make, reference = CASES[name]
    made = {"qsgd": lambda h: make(), "rotated": lambda h: ROTATED(bound=h)}[name]
    check_derivative(made, reference, None, other=BOUND)


@pytest.mark.parametrize("levels", [1, 4])
def test_qsgd_is_unbiased_and_varies_no_more_than_stated(levels):
    v = jnp.asarray(np.random.default_rng(0).normal(size=40), "float32")
    send = lambda key: qsgd(levels).client((), (), (), v, key)[0]  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 4000)
    sent = np.asarray(jax.jit(jax.vmap(send))(keys), np.float64)
    v = np.asarray(v, np.float64)
    assert (abs(sent.mean(axis=0) - v) <= 4 * sent.std(axis=0) / 4000**0.5 + 1e-6).all()
    variance = ((sent - v) ** 2).sum(axis=1).mean()
    bound = min(40 / levels**2, math.sqrt(40) / levels) * (v**2).sum()
    assert 0.1 * bound < variance < bound


@pytest.mark.parametrize(
    ("shape", "levels", "bucket", "dtype", "size"),
    [
        ((), 1, None, "float32", 1),
        ((3, 7), 4, 6, "bfloat16", 11),
        ((16,), 7, 16, "float32", 8),
    ],
)
def test_what_is_summed_is_what_the_code_decodes_to(shape, levels, bucket, dtype, size):
    """Bit for bit: ceil(log2(2 s + 1)) bits each, and a float32 for each bucket."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)

    @jax.jit
    def encoded(key):
        (own,) = jax.random.split(key, 1)
        return encode(x, own, levels, bucket)

    made = qsgd(levels, bucket=bucket)
    sent = jax.jit(lambda key: made.client((), (), (), x, key)[0])(jax.random.key(1))
    packed, norms = code = encoded(jax.random.key(1))
    assert (packed.dtype, packed.shape) == ("uint8", (size,))
    assert (norms.dtype, norms.size) == ("float32", -(-x.size // (bucket or x.size)))
    found = jax.jit(lambda code: decode(code, levels, bucket, x))(code)
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(sent, found)


def test_qsgd_of_hard_numbers():
    """Nothing overflows, nothing is divided by zero, what is exact stays so."""
    send = jax.jit(lambda x: qsgd(5).client((), (), (), x, jax.random.key(0))[0])
    for x in ([0.0, 0.0], [8e37, 0.0], [1e-30, 0.0], [-2e30, 0.0]):
        np.testing.assert_allclose(send(jnp.array(x)), np.array(x, "f4"), rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: send(x).sum())(jnp.zeros(2)), 1)


def _updates(seed, norm, size=SIZE, clients=5):
    v = np.random.default_rng(seed).normal(size=(clients, size))
    return (norm * v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def test_what_travels():
    updates, weights = tree(np.zeros((6, SIZE), np.float32)), np.ones(6, np.float32)
    made = qsgd(3, bucket=4)  # 3 bits: 3 bytes and 1, norms for 2 buckets and 1
    args, step = arguments(made, updates, weights), step_only(one_round(made))
    cost = fad.plan(step)(*args).cost()
    assert (cost.rounds, cost.bytes_up) == (1, (3 + 1) + 4 * (2 + 1) + 8)
    with pytest.raises(
        fad.PlacementError, match=r"u8\[3\], f32\[2\], before it can sum"
    ):
        fad.check(step)(*args)
    assert len(fad.check(step, allow="decode")(*args).allowed) == 2
    for bits, each in ((1, 1), (8, 1), (9, 2), (16, 2)):
        made = rotated_quantisation(bits, bound=1.0)
        args, step = arguments(made, updates, weights), step_only(one_round(made))
        cost = fad.plan(step)(*args).cost()
        assert (cost.rounds, cost.bytes_up) == (1, each * SIZE + 8)
        assert not fad.check(step)(*args).allowed


def test_rotation_spreads_what_is_in_a_few_coordinates():
    """Within the range as often as stated, unbiased, and as near as the range says."""
    size, bits, clients = 1000, 4, 400  # filled to 1024
    v, (d, levels) = jnp.zeros(size), (1024, 2**4 - 1)
    v = v.at[3].set(math.sqrt(3)).at[77].set(0.8).at[500].set(-0.6)  # of norm 2
    made = rotated_quantisation(bits, bound=2.0)

    def once(number, key):
        state = made.init(v)._replace(round=number)
        message, _ = made.client((), state, (), v, key)
        step, state = made.server((), state, message, v, None)
        return step, state.saturated

    keys = jax.random.split(jax.random.key(0), clients)
    steps, saturated = jax.jit(jax.vmap(once))(jnp.arange(clients), keys)
    assert float((saturated > 0).mean()) <= 0.01
    errors = np.asarray(steps - v[None], np.float64)
    assert abs(errors.mean(axis=0)).max() < 5 * errors.std(axis=0).max() / clients**0.5
    square = (errors**2).sum(axis=1).mean() / 2.0**2
    assert 0.1 < square / (2 * math.log(2 * d / 0.01) / levels**2) < 1


def test_a_sum_of_integers_is_exact():
    """With 16 bits and clients of one grid, to the rounding of float32."""
    updates = _updates(0, 1.0)
    made = rotated_quantisation(16, bound=1.0)
    done = rounds(made, [tree(updates)], np.ones(5, np.float32), [range(5)])
    found = np.concatenate([x.reshape(-1) for x in done.steps[0].values()])
    np.testing.assert_allclose(found, updates.mean(axis=0), atol=2.0**-15)
    args = arguments(made, tree(updates[[0] * 65538]), np.ones(65538, np.float32))
    match = r"bits=16\): 65538 clients with levels up to 65535 .* Take fewer bits"
    with pytest.raises(FadError, match=match):
        jax.eval_shape(one_round(made), *args)


def test_composes_with_other_sums_and_other_means():
    updates, weights = (
        [tree(_updates(t, 3.0)) for t in range(3)],
        np.ones(5, np.float32),
    )
    run = functools.partial(
        rounds, updates=updates, weights=weights, ids=[range(5)] * 3
    )
    quantise, last = (
        rotated_quantisation(8, bound=1.0),
        secure_sum(bound=1.0, clients=5),
    )
    alone = run(chain(clip(1.0), quantise))
    summed = run(chain(clip(1.0), quantise, last))
    fixed = gaussian_mean(noise_multiplier=0.0, bound=1.0, clients=5)
    mean_apart = run(chain(clip(1.0), quantise, last, fixed))
    for found in (summed.steps, mean_apart.steps):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=2e-6), found, alone.steps
        )
    assert set(alone.metrics[0]) == {"clipped_fraction", "saturated_fraction"}
    # The code of the last alone travels: what it rounds is no longer the other's.
    assert chain(top_k(2), qsgd(3)).total.__qualname__.startswith("qsgd")


def test_what_was_made_smaller_can_be_quantised():
    updates, second = tree(_updates(0, 1.0)), rotated_quantisation(12, bound=3.0)
    run = functools.partial(rounds, weights=np.ones(5, np.float32), ids=[range(5)])
    both = run(chain(random_k(4), second), [updates]).steps[0]
    one = run(random_k(4), [updates]).steps[0]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=0.02), both, one)


@pytest.mark.parametrize("name", [*CASES, "after_random_k"])
def test_a_tree_may_mix_its_dtypes(name):
    updates = {
        "a": jnp.ones((2, 2, 3), jnp.bfloat16),
        "b": jnp.full((2,), 0.5, jnp.float32),
        "c": jnp.zeros((2, 0), jnp.float16),
    }
    made = CASES[name][0]() if name in CASES else chain(random_k(3), qsgd(3))
    args = arguments(made, updates, np.ones(2, np.float32))
    step = jax.eval_shape(one_round(made), *args).step
    for x, y in zip(updates.values(), step.values(), strict=True):
        assert (x.shape[1:], x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: qsgd(0),
            r"qsgd\(levels\): expected levels as an int, 1 to 127; got 0",
        ),
        (lambda: qsgd(128), "1 to 127; got 128"),
        (lambda: qsgd(True), "got True"),
        (
            lambda: qsgd(3, bucket=0),
            r"qsgd\(bucket=\.\.\.\): expected bucket as an int,",
        ),
        (lambda: rotated_quantisation(17, bound=1.0), r"bits=17\): .* 1 to 16; got 17"),
        (lambda: rotated_quantisation(8.0, bound=1.0), r"got 8\.0"),  # type: ignore
    ],
)
def test_sizes_that_are_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), None])
def test_bounds_that_are_refused(bound):
    with pytest.raises(
        FadError, match=r"rotated_quantisation\(bits=.*\): expected bound as"
    ):
        rotated_quantisation(8, bound=bound)


def test_the_derivative_of_a_compiled_round_is_that_of_the_round():
    one = rotated_quantisation(8, bound=1.0)
    state, updates = one.init(jnp.zeros(3)), jnp.ones((2, 3)) / 4

    @fad.program
    def norm(scale, updates):
        message = fad.map(
            lambda d: one.client((), state, (), scale * d, jax.random.key(0))[0],
            updates,
        )
        weights = fad.map(lambda d: jnp.ones(()), updates)
        mean = combined(one, message, weights)
        return jnp.sum(one.server((), state, mean, None, None)[0] ** 2)

    updates = fad.AtClients(updates)
    want = jax.grad(norm)(1.0, updates)
    for compiled in (jax.jit, jax.checkpoint, fad.jit):
        got = jax.grad(compiled(norm))(1.0, updates)
        np.testing.assert_allclose(got, want, rtol=1e-5)
