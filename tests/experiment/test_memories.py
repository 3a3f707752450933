"""Runs of algorithms whose clients keep something between their rounds."""

import dataclasses
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.experiment import (
    DataConfig,
    Experiment,
    ModelConfig,
    make_task,
    read_rows,
    run,
)
from fad.experiment._loop import Diverged
from fad.experiment._plan import plan_step

CLIENTS, COHORT = 12, 4


class State(NamedTuple):
    params: Any


@dataclasses.dataclass(frozen=True)
class Config:
    """No options."""

    name: typing.ClassVar[str] = "counting"


def counting(task: Any, *, nan_at: int = 0) -> fad.Algorithm:
    """Clients count their rounds and keep the bias that they were sent last."""

    def init(key):
        return State(task.init(key))

    @fad.program
    def step(state, cohort, key, memory):
        del key
        bias = jax.tree.leaves(state.params)[0]

        def work(batches, own):
            there = batches.mask.any()
            kept = {"rounds": own["rounds"] + 1, "bias": bias}
            kept = jax.tree.map(lambda a, b: jnp.where(there, a, b), kept, own)
            return kept, kept["rounds"].astype(jnp.float32)

        memory, rounds = fad.map(work, cohort, memory)
        mean = fad.mean(rounds)
        shift = jnp.where(mean == nan_at, jnp.nan, 0.01 * mean)
        params = jax.tree.map(lambda p: p + shift, state.params)
        return State(params), {"rounds_of_a_client": mean}, memory

    def init_client(state):
        bias = jax.tree.leaves(state.params)[0]
        return {"rounds": jnp.int32(0), "bias": jnp.zeros_like(bias)}

    return fad.Algorithm(init, step, init_client=init_client)


@pytest.fixture(scope="module")
def task() -> Any:
    data = DataConfig(clients=CLIENTS, partition="iid")
    return make_task(data, ModelConfig(name="logistic"))


def experiment(**options: Any) -> Experiment:
    defaults = {
        "name": "short",
        "rounds": 6,
        "eval_every": 1,
        "checkpoint_every": 2,
        "cohort": COHORT,
        "batch_size": 64,
        "epochs": 1,
        "algorithm": Config(),
        "data": DataConfig(clients=CLIENTS, partition="iid"),
        "model": ModelConfig(name="logistic"),
    }
    return Experiment(**{**defaults, **options})


def cohorts(task: Any, rounds: int) -> list[np.ndarray]:
    """The clients of each round of a run."""
    _, key, _ = jax.random.split(jax.random.key(0), 3)
    with task.train.cohorts(key, COHORT, batch_size=64) as found:
        return [np.asarray(next(found).unsafe_gather().client) for _ in range(rounds)]


def test_memories_are_of_each_client_and_survive_a_resume(task, tmp_path):
    algorithm = counting(task)
    whole = run(experiment(), algorithm, task, tmp_path / "whole", progress=False)
    memories = whole.memories
    assert memories is not None
    seen = np.bincount(np.concatenate(cohorts(task, 6)), minlength=CLIENTS)
    everyone = memories.read(np.arange(CLIENTS))
    np.testing.assert_array_equal(everyone["rounds"], seen)
    assert 0 in seen  # a client that never took part holds nothing
    assert memories.nbytes == (1 + np.count_nonzero(seen)) * (4 + 4 * 10)

    folder = tmp_path / "part"
    run(experiment(rounds=4), algorithm, task, folder, progress=False)
    part = run(experiment(), algorithm, task, folder, resume=True, progress=False)
    assert part.memories is not None
    again = part.memories.read(np.arange(CLIENTS))
    jax.tree.map(np.testing.assert_array_equal, again, everyone)
    jax.tree.map(np.testing.assert_array_equal, part.state, whole.state)
    without = [{k: v for k, v in r.items() if k != "seconds"} for r in whole.rows]
    rows = read_rows(folder / "metrics.jsonl")
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in rows] == without


def test_a_round_that_is_refused_leaves_no_memory(task, tmp_path):
    algorithm, folder = counting(task, nan_at=1), tmp_path / "bad"
    with pytest.raises(Diverged, match="round 1"):
        run(experiment(), algorithm, task, folder, progress=False)
    assert not list((folder / "checkpoints").iterdir())


def test_a_memory_that_is_not_finite_ends_the_run(task, tmp_path):
    algorithm = counting(task)

    @fad.program
    def bad(state, cohort, key, memory):
        state, metrics, memory = algorithm.step(state, cohort, key, memory)
        return (
            state,
            metrics,
            fad.map(lambda m: {**m, "bias": m["bias"] * jnp.nan}, memory),
        )

    with pytest.raises(Diverged, match="round 1: the parameters are not finite"):
        run(
            experiment(),
            algorithm._replace(step=bad),
            task,
            tmp_path / "bad",
            progress=False,
        )


def test_memories_over_a_mesh(task, tmp_path):
    mesh = jax.make_mesh((1,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    options = {"progress": False, "mesh": mesh}
    config = experiment(rounds=2)
    result = run(config, counting(task), task, tmp_path / "mesh", **options)
    assert result.memories is not None
    seen = np.bincount(np.concatenate(cohorts(task, 2)), minlength=CLIENTS)
    got = result.memories.read(np.arange(CLIENTS))["rounds"]
    np.testing.assert_array_equal(got, seen)


def test_a_client_cannot_stand_in_a_cohort_twice(task, tmp_path):
    with pytest.raises(fad.ConfigError, match=r"replace: .*cannot stand in a cohort"):
        run(experiment(replace=True), counting(task), task, tmp_path / "twice")


def test_the_plan_knows_the_memories(task):
    cost = plan_step(experiment(), counting(task), task).cost()
    assert (cost.bytes_down, cost.bytes_up) == (4 * 10, 4)
