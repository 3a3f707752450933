"""What every algorithm sends and reveals: sums alone, in the rounds it states."""

import jax
import pytest

import fad
from algorithms import ALGORITHMS, BILEVEL_ALGORITHMS
from fad.experiment import make_task
from fad.experiment._config import DataConfig, ModelConfig

# (rounds per step, models down, models up) per client; no algorithm so far leaks.
COSTS = {
    "afl": (1, 1, 1),
    "fathom": (1, 1, 1),
    "fedavg": (1, 1, 1),
    "fedexp": (1, 1, 1),
    "fedhyper": (1, 1, 1),
    "fednova": (1, 1, 1),
    "hypergradient_descent": (1, 1, 1),
    "learned_aggregator": (1, 1, 3),
    "learned_weights": (1, 2, 2),
    "per_fedavg": (1, 1, 1),
    "qffl": (1, 1, 1),
    "reptile": (1, 1, 1),
    "self_tuning_fedavg": (1, 2, 2),
}
MODEL = 4 * (64 * 10 + 10)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - set(BILEVEL_ALGORITHMS)))
def test_step(name):
    data = DataConfig(set="digits", partition="dirichlet", clients=8, alpha=1.0)
    task = make_task(data, ModelConfig(name="logistic"))
    module = ALGORITHMS[name]
    algorithm = module.build(module.Config(), task)
    key = jax.random.key(0)
    cohort = task.train.cohort(key, 4, batch_size=10, epochs=1)
    args = (algorithm.init(key), cohort, key)
    rounds, down, up = COSTS[name]
    cost = fad.plan(algorithm.step)(*args).cost()
    assert cost.rounds == rounds
    assert cost.bytes_down // MODEL == down
    assert cost.bytes_up // MODEL == up
    assert cost.client_state_bytes == 0
    assert not cost.same_cohort
    report = fad.check(algorithm.step)(*args)
    assert not report.allowed
    assert all(o.where == "server" for o in report.outputs)
