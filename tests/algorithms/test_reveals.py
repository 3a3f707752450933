"""What every algorithm sends and reveals: sums alone, in the rounds it states."""

import jax
import jax.numpy as jnp
import pytest

import fad
from algorithms import ALGORITHMS, BILEVEL_ALGORITHMS
from fad.experiment import make_task
from fad.experiment._config import DataConfig, ModelConfig

# (rounds per step, models down, models up) per client; no algorithm so far leaks.
COSTS = {
    "afl": (1, 1, 1),
    "aggregated_fedavg": (1, 1, 1),
    "ditto": (1, 1, 1),
    "fathom": (1, 1, 1),
    "fedavg": (1, 1, 1),
    "fedbuff": (2, 1, 1),
    "feddyn": (1, 1, 1),
    "fedexp": (1, 1, 1),
    "fedhyper": (1, 1, 1),
    "fednova": (1, 1, 1),
    "fedprox": (1, 1, 1),
    "fedsep": (1, 0, 0),  # a tenth of it
    "hypergradient_descent": (1, 1, 1),
    "learned_aggregator": (1, 1, 3),
    "learned_weights": (1, 2, 2),
    "mime": (2, 3, 2),
    "per_fedavg": (1, 1, 1),
    "qffl": (1, 1, 1),
    "reptile": (1, 1, 1),
    "scaffnew": (1, 1, 1),
    "scaffold": (1, 2, 2),
    "self_tuning_fedavg": (1, 2, 2),
}
MODEL = 4 * (64 * 10 + 10)


# What clients of several widths cost and reveal is in test_submodel_fedavg.py.
SUBMODELS = {"federated_dropout", "fedrolex", "fedsep_submodels", "heterofl"}
# What clients say of public examples, and what that costs, is in test_distillation.py.
DISTILLED = {"dsfl", "feddf", "fedet"}
# What sparse clients cost and reveal is in test_sparse.py.
SPARSE = {"feddst", "flash", "zerofl"}
OTHERS = SUBMODELS | DISTILLED | SPARSE
WHOLE = set(ALGORITHMS) - set(BILEVEL_ALGORITHMS) - OTHERS


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_step(name):
    data = DataConfig(set="digits", partition="dirichlet", clients=8, alpha=1.0)
    task = make_task(data, ModelConfig(name="logistic"))
    module = ALGORITHMS[name]
    algorithm = module.build(module.Config(), task)
    key = jax.random.key(0)
    size = 8 if name == "scaffnew" else 4  # which wants all of them
    cohort = task.train.cohort(key, size, batch_size=10, epochs=1)
    args = (algorithm.init(key), cohort, key)
    if algorithm.init_client is not None:
        first = algorithm.init_client(args[0])
        stack = jax.tree.map(lambda x: jnp.stack([x] * size), first)
        args = (*args, fad.AtClients(stack))
    rounds, down, up = COSTS[name]
    cost = fad.plan(algorithm.step)(*args).cost()
    assert cost.rounds == rounds
    assert cost.bytes_down // MODEL == down
    assert cost.bytes_up // MODEL == up
    assert (cost.client_state_bytes > 0) == bool(cost.same_cohort) == (rounds > 1)
    report = fad.check(algorithm.step)(*args)
    assert not report.allowed
    kept = {o.path.startswith("output[2]") for o in report.outputs if o.axes}
    assert kept <= {True}  # the memories, which stay where they are
