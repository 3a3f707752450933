"""Top-K with error feedback, and random-K: values, derivatives, bytes, hard cohorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import ConfigError, FadError
from fad.aggregators._random_k import random_k
from fad.aggregators._top_k import decode, encode, top_k
from tests.aggregators.classical_runs import arguments, one_round
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

K = 3


def _top_k(xp, d, w, e, carry, t, clients):
    e = e + d
    place = xp.argsort(xp.argsort(-abs(e), axis=1), axis=1)
    sent = xp.where(place < K, e, 0)
    return mean(xp, sent, w), e - sent, carry


def _random_k(xp, d, w, e, carry, t, clients):
    key = lambda: jax.random.fold_in(jax.random.key(7), t)  # noqa: E731
    chance = draw(lambda: jax.random.uniform(key(), (SIZE,), "float32"))
    some = np.argsort(np.argsort(-chance)) < K
    return SIZE / K * some * mean(xp, d, w), e, carry


CASES = {
    "top_k": (lambda: top_k(K), _top_k),
    "random_k": (lambda: random_k(K, seed=7), _random_k),
}
EACH = pytest.mark.parametrize("name", CASES)


@EACH
@pytest.mark.usefixtures("x64")
def test_values_equal_numpy(name):
    make, reference = CASES[name]
    done, _ = check_values(make(), reference, None)
    sent = max(np.count_nonzero(flat(s)) for s in done.steps)
    assert K < sent <= 3 * K if name == "top_k" else sent == K


@EACH
@pytest.mark.usefixtures("x64")
def test_derivative_equals_plain_jax(name):
    make, reference = CASES[name]
    check_derivative(lambda h: make(), reference, None, other=0.0)


def test_what_travels():
    updates, weights = tree(np.zeros((6, SIZE), np.float32)), np.ones(6, np.float32)
    others = 4 + 4  # a client's weight, and whether its update is finite
    for k in (K, 5):
        args = arguments(top_k(k), updates, weights)
        step = step_only(one_round(top_k(k)))
        assert fad.plan(step)(*args).cost().bytes_up == 8 * k + others
        with pytest.raises(fad.PlacementError, match="decodes what each client sends"):
            fad.check(step)(*args)
        assert {a.kind for a in fad.check(step, allow="decode")(*args).allowed} == {
            "decode"
        }
        args = arguments(random_k(k), updates, weights)
        step = step_only(one_round(random_k(k)))
        cost = fad.plan(step)(*args).cost()
        assert (cost.rounds, cost.bytes_up, cost.bytes_down) == (1, 4 * k + others, 4)
        assert not fad.check(step)(*args).allowed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_summed_is_what_the_code_decodes_to(dtype):
    """Bit for bit, and no number is sent that is not the client's own."""
    update = jnp.asarray(np.random.default_rng(0).normal(size=SIZE), dtype)
    made = top_k(K)
    memory = made.init_client(update)
    assert memory.dtype == dtype
    for _ in range(3):
        code = encode(memory + update, K)
        assert (code[0].dtype, code[1].dtype) == (dtype, "int32")
        sent, new = made.client((), (), memory, update, None)
        np.testing.assert_array_equal(sent, decode(code, SIZE))
        np.testing.assert_array_equal(sent + new, memory + update)
        memory = new


def test_top_k_takes_the_first_of_equals_and_keeps_them():
    sent, kept = top_k(2).client((), (), jnp.zeros(4), jnp.array([1, -1, 1, 1.0]), None)
    assert (sent.tolist(), kept.tolist()) == ([1, -1, 0, 0], [0, 0, 1, 1])


@pytest.mark.usefixtures("x64")
def test_error_feedback_sends_everything_in_the_end():
    """What came in is what went out plus what is kept; without it much is lost."""
    update = jnp.array([1.0, 0.5, 0.25, 0.125])
    made, sent = top_k(1), 0
    memory = made.init_client(update)
    for _ in range(64):
        out, memory = made.client((), (), memory, update, None)
        sent = sent + out
    np.testing.assert_allclose(sent + memory, 64 * update, rtol=1e-12)
    assert float(abs(memory).max()) < 2.0  # of 64


@pytest.mark.usefixtures("x64")
def test_random_k_gives_the_mean_on_average():
    made, update = random_k(K), jnp.arange(1.0, SIZE + 1)

    def step(number):
        message, _ = made.client((), number, (), update, None)
        return made.server((), number, message, update, None)[0]

    steps = np.asarray(jax.vmap(step)(jnp.arange(2000, dtype=jnp.int32)))
    error = steps.mean(axis=0) - np.asarray(update)
    assert (abs(error) < 4 * steps.std(axis=0) / 2000**0.5).all()
    assert (np.count_nonzero(steps, axis=1) == K).all()


@EACH
def test_a_tree_may_mix_its_dtypes(name):
    updates = {
        "a": jnp.ones((2, 2, 3), jnp.bfloat16),
        "b": jnp.full((2,), 3.0, jnp.float32),
        "c": jnp.zeros((2, 0), jnp.float16),
    }
    made = CASES[name][0]()
    args = arguments(made, updates, np.ones(2, np.float32))
    step = jax.eval_shape(one_round(made), *args).step
    for x, y in zip(updates.values(), step.values(), strict=True):
        assert (x.shape[1:], x.dtype) == (y.shape, y.dtype)


def test_without_memory_and_without_the_factor():
    update = jnp.arange(1.0, SIZE + 1)
    made = top_k(3 / 8, error_feedback=False)
    assert made.init_client(update) == ()
    sent, memory = made.client((), (), (), update, None)
    assert (sent.tolist(), memory) == ([0] * 5 + [6, 7, 8], ())
    made, number = random_k(K, unbiased=False), jnp.int32(5)
    message, _ = made.client((), number, (), update, None)
    step, _ = made.server((), number, message, update, None)
    assert int((step == update).sum()) == K == int((step != 0).sum())


@pytest.mark.parametrize("make", [top_k, random_k])
def test_what_is_refused(make):
    name = make.__name__
    for k in (0, -1, 1.5, 0.0, float("nan"), True, "3", None):
        match = rf"fad\.aggregators\.{name}\(k=.*expected k as an int of at least 1"
        with pytest.raises(ConfigError, match=match):
            make(k)
    update = jnp.zeros(SIZE)
    made = make(9)
    with pytest.raises(FadError, match=rf"{name}\(k=9\): .* 8 coordinates; expected k"):
        made.client((), made.init(update), made.init_client(update), update, None)
