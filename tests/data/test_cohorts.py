"""Cohorts ahead of their use: the same ones, exact resume, no thread left behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

from fad.data import Federated

pytestmark = pytest.mark.once

OPTIONS: dict[str, Any] = {
    "batch_size": 2,
    "epochs": 2,
    "sampling": "size",
    "replace": True,
}
KEY = jax.random.key(7)


def ragged(sizes=(3, 0, 7, 5, 1, 9)):
    offsets = np.cumsum([0, *sizes])
    rows = np.arange(1, offsets[-1] + 1)
    return Federated({"x": rows.astype(np.float32), "y": rows}, offsets)


def threads():
    return [t for t in threading.enumerate() if t.name == "fad.stream"]


def assert_same(left, right):
    left, right = left.unsafe_gather(), right.unsafe_gather()
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_are_the_cohorts_of_the_rounds(prefetch):
    data = ragged()
    with data.cohorts(KEY, 3, prefetch=prefetch, **OPTIONS) as cohorts:
        for t in range(1, 6):
            expected = data.cohort(jax.random.fold_in(KEY, t), 3, **OPTIONS)
            assert_same(next(cohorts), expected)
            assert int(cohorts.state["round"]) == t


def test_are_iterated_and_placed():
    data, placed = ragged(), []

    def place(cohort):
        placed.append(threading.current_thread())
        return cohort

    with data.cohorts(KEY, 3, place=place, **OPTIONS) as cohorts:
        for cohort, _ in zip(cohorts, range(3), strict=False):
            assert isinstance(cohort.unsafe_gather().mask, np.ndarray)
    assert threading.current_thread() not in placed


def test_are_on_the_device():
    with ragged().cohorts(KEY, 3, **OPTIONS) as cohorts:
        leaves = jax.tree.leaves(next(cohorts))
    assert all(isinstance(x, jax.Array) for x in leaves)


def test_the_next_is_made_while_a_round_runs():
    made = threading.Semaphore(0)

    def place(cohort):
        made.release()
        return cohort

    with ragged().cohorts(KEY, 3, place=place, **OPTIONS) as cohorts:
        next(cohorts)
        assert made.acquire(timeout=10)
        assert made.acquire(timeout=10)
        # One ahead, no more.
        assert not made.acquire(timeout=0.05)


@pytest.mark.parametrize("by", ["restore", "state"])
@pytest.mark.parametrize("prefetch", [0, 1])
def test_resume_is_exact(by, prefetch):
    whole = ragged().cohorts(KEY, 3, **OPTIONS)
    for _ in range(5):
        next(whole)
    # As a checkpoint gives it back.
    state = jax.tree.map(jax.numpy.asarray, whole.state)
    given = state if by == "state" else None
    part = ragged().cohorts(KEY, 3, prefetch=prefetch, state=given, **OPTIONS)
    if by == "restore":
        next(part)
        part.restore(state)
    for _ in range(4):
        assert_same(next(whole), next(part))
        jax.tree.map(np.testing.assert_array_equal, whole.state, part.state)
    whole.close()
    part.close()


def test_the_state_is_arrays_of_one_form():
    cohorts = ragged().cohorts(KEY, 3, **OPTIONS)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), cohorts.state)
    next(cohorts)
    assert before == jax.tree.map(lambda x: (x.shape, x.dtype), cohorts.state)
    assert all(isinstance(x, np.ndarray) for x in cohorts.state.values())
    cohorts.close()


def permuted():
    data = ragged()
    return Federated({k: x[::-1] for k, x in data.examples.items()}, data.offsets)


def changed(**options: Any) -> dict[str, Any]:
    return OPTIONS | options


OTHERS = {
    "key": (lambda: ragged().cohorts(jax.random.key(8), 3, **OPTIONS), "another key"),
    "kind of key": (
        lambda: ragged().cohorts(jax.random.key(7, impl="rbg"), 3, **OPTIONS),
        "another key",
    ),
    "sizes": (
        lambda: ragged((3, 0, 7, 5, 2, 8)).cohorts(KEY, 3, **OPTIONS),
        "other clients",
    ),
    "rows": (lambda: permuted().cohorts(KEY, 3, **OPTIONS), "other clients"),
    "size": (lambda: ragged().cohorts(KEY, 4, **OPTIONS), "other options"),
    "batch": (
        lambda: ragged().cohorts(KEY, 3, **changed(batch_size=3)),
        "other options",
    ),
    "weights": (
        lambda: ragged().cohorts(KEY, 3, **changed(sampling=[1.0] * 6)),
        "other options",
    ),
    "available": (
        lambda: ragged().cohorts(KEY, 3, available=np.full(6, 0.5), **OPTIONS),
        "other options",
    ),
    "examples": (
        lambda: ragged().cohorts(KEY, 3, max_examples=2, **OPTIONS),
        "other options",
    ),
    "buckets": (
        lambda: ragged().cohorts(KEY, 3, bucket_growth=None, **OPTIONS),
        "other options",
    ),
}


@pytest.mark.parametrize(("make", "what"), OTHERS.values(), ids=OTHERS)
def test_refuses_the_state_of(make, what):
    state = ragged().cohorts(KEY, 3, **OPTIONS).state
    match = rf"restore\(state=\.\.\.\): the state is of {what} than these cohorts\."
    with pytest.raises(ValueError, match=match):
        make().restore(state)


@pytest.mark.parametrize("state", [None, 3, {}, {"round": np.int32(3)}])
def test_refuses_what_is_no_state(state):
    with pytest.raises(ValueError, match=r"expected what Cohorts\.state gives, \['cl"):
        ragged().cohorts(KEY, 3, **OPTIONS).restore(state)


@pytest.mark.parametrize("value", [-5, 2.7, np.zeros(2, int), "3", True])
def test_refuses_a_state_with_another_round(value):
    cohorts = ragged().cohorts(KEY, 3, **OPTIONS)
    match = r"expected 'round' to be an integer of at least 0; got"
    with pytest.raises(ValueError, match=match):
        cohorts.restore(cohorts.state | {"round": value})


def test_keys_that_draw_alike_share_a_state_and_others_do_not():
    def state(key):
        return ragged().cohorts(key, 3, **OPTIONS).state

    data, raw = ragged(), jax.random.PRNGKey(7)
    data.cohorts(raw, 3, state=state(KEY), **OPTIONS)
    keys = [jax.random.key(7, impl=impl) for impl in ("rbg", "unsafe_rbg")]
    data.cohorts(keys[0], 3, state=state(keys[0]), **OPTIONS)
    with pytest.raises(ValueError, match="the state is of another key"):
        data.cohorts(keys[1], 3, state=state(keys[0]), **OPTIONS)


def test_replace_as_numpys_bool_is_the_same_option():
    state = ragged().cohorts(KEY, 3, **OPTIONS).state
    ragged().cohorts(KEY, 3, state=state, **changed(replace=np.True_))


def test_a_method_as_place_is_ended_by_close():
    class Trainer:
        def __init__(self):
            self.cohorts = ragged().cohorts(KEY, 3, place=self.place, **OPTIONS)

        def place(self, cohort):
            return cohort

    trainer = Trainer()
    next(trainer.cohorts)
    trainer.cohorts.close()
    assert not threads()


@pytest.mark.parametrize("prefetch", [-1, 0.5, "one"])
def test_refuses_prefetch(prefetch):
    match = r"cohorts\(prefetch=\.\.\.\): expected an integer of at least 0"
    with pytest.raises(ValueError, match=match):
        ragged().cohorts(KEY, 3, prefetch=prefetch, **OPTIONS)


def test_refuses_wrong_arguments_at_once():
    with pytest.raises(ValueError, match=r"cohort\(batch_size=\.\.\.\)"):
        ragged().cohorts(KEY, 3, batch_size=0)
    with pytest.raises(ValueError, match=r"cohorts\(key=\.\.\.\): expected one key"):
        ragged().cohorts(jax.numpy.zeros(2), 3, **OPTIONS)
    with pytest.raises(TypeError, match="batches"):
        ragged().cohorts(KEY, 3, batches=2)
    assert not threads()


def test_close_ends_the_thread():
    cohorts = ragged().cohorts(KEY, 3, **OPTIONS)
    assert not threads()
    next(cohorts)
    assert len(threads()) == 1
    cohorts.close()
    assert not threads()
    cohorts.close()
    with pytest.raises(ValueError, match=r"Cohorts: these cohorts are closed\. Make"):
        next(cohorts)


def test_with_ends_the_thread_where_the_consumer_raises():
    def consume():
        with ragged().cohorts(KEY, 3, **OPTIONS) as cohorts:
            next(cohorts)
            raise RuntimeError("the round failed")

    with pytest.raises(RuntimeError, match="the round failed"):
        consume()
    assert not threads()


def test_dropping_ends_the_thread():
    cohorts = ragged().cohorts(KEY, 3, **OPTIONS)
    next(cohorts)
    del cohorts
    gc.collect()
    assert not threads()


def test_an_error_in_the_thread_is_raised_by_next_and_the_round_tried_again():
    data, calls = ragged(), []

    def place(cohort):
        calls.append(cohort)
        if len(calls) == 3:
            raise OSError("the device is full")
        return cohort

    with data.cohorts(KEY, 3, place=place, **OPTIONS) as cohorts:
        next(cohorts)
        next(cohorts)
        with pytest.raises(OSError, match="the device is full"):
            next(cohorts)
        assert not threads()
        assert int(cohorts.state["round"]) == 2
        third = next(cohorts)
    assert_same(third, data.cohort(jax.random.fold_in(KEY, 3), 3, **OPTIONS))


@pytest.fixture
def interruptible():
    """Ctrl-C works, also where the run began in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_while_waiting():
    data, slow = ragged(), []

    def place(cohort):
        if not slow:
            slow.append(cohort)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(0.4)
        return cohort

    with data.cohorts(KEY, 3, place=place, **OPTIONS) as cohorts:
        with pytest.raises(KeyboardInterrupt):
            next(cohorts)
        assert not threads()
        first = next(cohorts)
    assert_same(first, data.cohort(jax.random.fold_in(KEY, 1), 3, **OPTIONS))


def test_a_program_may_end_without_closing():
    program = """
import jax, numpy as np
from fad.data import Federated
data = Federated({"x": np.zeros((200_000, 50), np.float32)}, np.arange(1001) * 200)
cohorts = data.cohorts(jax.random.key(0), 500, batch_size=10)
next(cohorts)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
