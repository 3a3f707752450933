"""The compiled pieces of a run: the step, the evaluation, the cost of a round."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fad._strong import strong
from fad.data import BilevelTask

# Test examples evaluated at once, so that memory does not grow with the test set: a
# convolution holds some megabytes of each.
EVAL_BATCH = 512


def compile_step(
    algorithm: Any, *, chunk: int | str | None, mesh: Mesh | None
) -> Callable[..., tuple[Any, ...]]:
    """Return the compiled step: ``(state, cohort, key) -> (state, metrics, finite)``.

    ``finite`` says whether all of ``state.params`` and of the memories is. Memories, if
    clients have any, are the last argument and the last result. Without a ``chunk`` it
    is one client on a CPU, where that is fastest, and the cohort elsewhere: a fixed
    rule, so that a resumed run gives the same bits.
    """
    import fad  # Here, for the package imports this module while it is being built.

    def step(state: Any, cohort: Any, key: Any, *memory: Any) -> tuple[Any, ...]:
        state, metrics, *kept = algorithm.step(state, cohort, key, *memory)
        leaves = [x for x in jax.tree.leaves((state.params, kept)) if _is_float(x)]
        finite = [jnp.isfinite(x).all() for x in leaves]
        state, kept = jax.tree.map(strong, (state, kept))
        return state, metrics, jnp.stack(finite).all(), *kept

    if chunk is None and jax.default_backend() == "cpu":
        chunk = 1
    return fad.jit(step, chunk=chunk, mesh=mesh)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def evaluate(task: Any, params: Any, examples: Any) -> dict[str, float]:
    """Average the per-example metrics over the examples, and add those of the set.

    Compiled once per task.

    Args:
        task: The ``fad.data.Task`` or ``fad.data.BilevelTask``.
        params: The model; of two levels, ``(x, y)``.
        examples: Arrays ``[N, *]``.

    Returns:
        The metrics by name.
    """
    model = _model(task, params)
    count = len(jax.tree.leaves(examples)[0])
    sums: dict[str, float] = {}
    for start in range(0, count, EVAL_BATCH):
        rows = slice(start, start + EVAL_BATCH)
        batch = jax.tree.map(lambda x, rows=rows: x[rows], examples)
        for name, x in jax.device_get(_sums(task.metrics, model, batch)).items():
            sums[name] = sums.get(name, 0.0) + float(x)
    means = {name: x / count for name, x in sums.items()}
    of_set = {k: float(f(*model, examples)) for k, f in task.set_metrics.items()}
    return means | of_set


def test_names(task: Any, params: Any, examples: Any) -> set[str]:
    """Return the names of what ``evaluate`` gives, without computing it."""
    return {
        *jax.eval_shape(task.metrics, *_model(task, params), examples),
        *task.set_metrics,
    }


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    metrics: Callable, model: tuple[Any, ...], examples: Any
) -> dict[str, jax.Array]:
    return {k: x.sum() for k, x in metrics(*model, examples).items()}


def _model(task: Any, params: Any) -> tuple[Any, ...]:
    """Return what a task's metrics take before the examples."""
    return params if isinstance(task, BilevelTask) else (params,)


def round_cost(step: Callable, *args: Any) -> tuple[int, int]:
    """Return the bytes that one client of the cohort receives and sends in a step."""
    import fad  # Here, for the package imports this module while it is being built.

    cost = fad.plan(step)(*args).cost()
    return cost.bytes_down, cost.bytes_up
