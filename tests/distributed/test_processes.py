"""Two processes of two devices: one's numbers, and what becomes of the other's end."""

import signal
import time

import jax
import numpy as np
import pytest

from tests import rounds
from tests.distributed import worker
from tests.distributed.job import RESTART, Job

WITHIN = 60  # seconds in which a message must come
# A process with several devices may wait this long for a dead one; the default is 30.
SOON = {"COLLECTIVE_SECONDS": "4"}


def _numbers(path):
    with np.load(path) as stored:
        return [stored[k] for k in stored.files if k.startswith("arr_")]


def _assert_same(path, tree):
    leaves = jax.tree.leaves(tree)
    for actual, expected in zip(_numbers(path), leaves, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def undisturbed():
    """The state after all rounds in one process, on one device."""
    params, *rest = rounds.make_args(worker.CLIENTS)
    state = params, jax.tree.map(np.zeros_like, params)
    for _ in range(worker.ROUNDS):
        state = jax.block_until_ready(jax.jit(rounds.fl_round)(*state, *rest))
    return state


def test_value_and_gradient_equal_one_process_s(session):
    args = rounds.make_args(worker.CLIENTS)
    expected = jax.jit(jax.value_and_grad(rounds.train, worker.EVERY))(*args)
    _assert_same(session.numbers, expected)


def _run_until_the_deed(tmp_path, monkeypatch, mode, victim, **environment):
    monkeypatch.setenv("VICTIM", str(victim))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    paths = [str(tmp_path / "state.npz")] if mode == "training" else []
    job = Job(tmp_path, mode, *paths)
    job.reaches(victim, "finished round 5")
    return job


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_resumes(
    tmp_path, monkeypatch, capsys, undisturbed, victim
):
    deed = _run_until_the_deed(tmp_path, monkeypatch, "training", victim, **SOON)
    with deed as job:
        start = time.monotonic()
        job.send(victim, signal.SIGKILL)
        assert job.wait(1 - victim, WITHIN) not in (0, None)
        job.says(1 - victim, RESTART)
        job.says(
            victim, f"process {victim} of 2 ended in the middle of the run: it was"
        )
        assert time.monotonic() - start < WITHIN
        if victim == 1:  # not the one that coordinates
            job.says(0, "RunError: fad.jit(fl_round): process 0 of 2 reports that")
    worker.training(tmp_path / "state.npz")  # this process, on its eight devices
    assert "resumed after round 5" in capsys.readouterr().out
    _assert_same(tmp_path / "state.npz", undisturbed)


def test_a_process_that_raises_ends_the_other(tmp_path, monkeypatch):
    with _run_until_the_deed(
        tmp_path, monkeypatch, "exchange", 1, DEED="raise", **SOON
    ) as job:
        assert job.wait(1, WITHIN) == 1
        assert job.wait(0, WITHIN) == 1
        assert "KeyError: 'a mistake of the program'" in job.output(1)
        assert RESTART not in job.output(1)
        assert "process 0 of 2 reports that another process" in job.output(0)


def test_a_process_that_is_told_to_end_does(tmp_path, monkeypatch):
    with _run_until_the_deed(tmp_path, monkeypatch, "exchange", 1, **SOON) as job:
        job.send(1, signal.SIGTERM)
        assert job.wait(1, WITHIN) == -signal.SIGTERM
        job.says(1, RESTART)
        assert job.wait(0, WITHIN) == 1


def test_a_process_that_hangs_ends_the_other(tmp_path, monkeypatch):
    with _run_until_the_deed(tmp_path, monkeypatch, "exchange", 0, **SOON) as job:
        assert job.wait(1, WITHIN) == 1
        assert "reports that another process did not answer in time" in job.output(1)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_other(tmp_path, monkeypatch, victim):
    seconds = {} if victim == 0 else SOON  # JAX's heartbeat, or the exchange's end
    with _run_until_the_deed(
        tmp_path, monkeypatch, "exchange", victim, **seconds
    ) as job:
        job.send(victim, signal.SIGSTOP)
        assert job.wait(1 - victim, WITHIN) not in (0, None)
        job.says(1 - victim, RESTART)


@pytest.mark.slow
def test_a_process_that_never_starts_ends_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("START_SECONDS", "4")
    with Job(tmp_path, "exchange") as job:
        job.send(1, signal.SIGSTOP)
        assert job.wait(0, WITHIN) != 0
        job.says(0, "initialize: process 0 of 2 ended before all processes had started")
