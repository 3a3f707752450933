"""What an implicit hypergradient costs in memory, at the size that others report."""

import jax
import jax.numpy as jnp
import pytest

import fad

CLIENTS, STEPS, BATCH, FEATURES, HIDDEN = 64, 5, 10, 784, 64


@pytest.fixture
def quick() -> None:
    """Let XLA optimise: memory is the compiled program's."""


def lower(x, y, examples):
    """Cross-entropy of an MLP, with a penalty of strength ``exp(x)``."""
    hidden = jnp.tanh(examples["x"] @ y["in"])
    scores = jax.nn.log_softmax(hidden @ y["out"])
    size = sum(jnp.sum(v**2) for v in y.values())
    return -jnp.sum(scores * examples["y"], axis=-1) + jnp.exp(x) * size


def upper(x, y, examples):
    return lower(x - x - 40, y, examples)


def batches(steps):
    def zeros(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((1, CLIENTS, *shape), dtype)

    rows = {"x": zeros(steps, BATCH, FEATURES), "y": zeros(steps, BATCH, 10)}
    mask = zeros(steps, BATCH, dtype=jnp.bool_)
    return fad.local.Batches(rows, mask, zeros(dtype=jnp.int32))


@pytest.mark.slow
def test_ten_terms_after_sixteen_rounds_take_seven_megabytes():
    problem = fad.estimators.Bilevel(upper=upper, lower=lower)
    cohorts = jax.eval_shape(
        lambda *split: fad.AtClients(fad.estimators.Split(*split)),
        *(batches(STEPS), batches(1)),
    )
    solver = fad.solvers.fedavg(0.1)
    estimator = fad.estimators.aid(problem, solver, steps=16, terms=10)

    def hypergradient(x, y, cohorts):
        first = jax.tree.map(lambda a: a[0], cohorts)
        state = estimator.init(x, y, first)
        return estimator.estimate(x, state, cohorts, None)

    zeros = jax.ShapeDtypeStruct
    y = {
        "in": zeros((FEATURES, HIDDEN), jnp.float32),
        "out": zeros((HIDDEN, 10), jnp.float32),
    }
    step = fad.jit(hypergradient, chunk=1)
    compiled = step.lower(zeros((), jnp.float32), y, cohorts).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 7e6
