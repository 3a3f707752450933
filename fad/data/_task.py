"""A learning task: data, initial model, loss and metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import num_rows
from fad.data._federated import Federated

PyTree = Any
Init = Callable[[jax.Array], PyTree]
Loss = Callable[[PyTree, dict[str, Any]], jax.Array]
Metrics = Callable[[PyTree, dict[str, Any]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is learnt, from which clients, and how it is judged.

    Args:
        name: A short name for tables and folders.
        train: The clients' examples.
        test: The examples held by the server for evaluation, arrays ``[N, *]``.
        init: ``init(key) -> params``.
        loss: ``loss(params, examples) -> [batch]``, one loss per example.
        metrics: ``metrics(params, examples) -> {name: [batch]}``, per example too.

    Raises:
        DataError: If train and test differ in their names, row shapes or dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> x = np.ones((3, 2), np.float32)
        >>> task = Task(
        ...     name="ones",
        ...     train=Federated({"x": x}, np.array([0, 1, 3])),
        ...     test={"x": x},
        ...     init=lambda key: jnp.zeros(2),
        ...     loss=lambda params, examples: examples["x"] @ params,
        ...     metrics=lambda params, examples: {"mean": examples["x"].mean(1)},
        ... )
        >>> task.loss(task.init(jax.random.key(0)), task.test).shape
        (3,)
    """

    name: str
    train: Federated
    test: dict[str, np.ndarray]
    init: Init
    loss: Loss
    metrics: Metrics

    def __post_init__(self) -> None:
        """Check that train and test hold examples of one kind."""
        test = {name: np.asarray(x) for name, x in self.test.items()}
        num_rows("Task", "test", test)
        object.__setattr__(self, "test", test)
        train_row, test_row = _row(self.train.examples), _row(test)
        if train_row != test_row:
            raise DataError(
                "fad.data.Task(train=..., test=...): both must hold the same arrays, "
                f"but a row of train is {train_row} and a row of test is {test_row}."
            )


def _row(examples: dict[str, np.ndarray]) -> dict[str, str]:
    """Describe one row of every array, in the order of the names."""
    return {name: describe(examples[name][0]) for name in sorted(examples)}
