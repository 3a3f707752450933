"""A learning task: data, initial model, loss and metrics."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fad._errors import DataError, describe
from fad.data._check_values import check_values
from fad.data._checks import arrays, num_rows
from fad.data._federated import Federated

PyTree = Any
Init = Callable[[jax.Array], PyTree]
Loss = Callable[[PyTree, dict[str, Any]], jax.Array]
Metrics = Callable[[PyTree, dict[str, Any]], dict[str, jax.Array]]
SetMetric = Callable[[PyTree, dict[str, Any]], float]


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
        set_metrics: Functions ``(params, test) -> number`` by name, for what is no mean
            over examples: the area under a curve, for one.

    Raises:
        DataError: If train and test differ in their names, row shapes or dtypes, test
            holds a masked array, or an array holds NaN, infinity or, without
            ``jax_enable_x64``, integers of more than 32 bits: where, by array, column
            and client.

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
    set_metrics: Mapping[str, SetMetric] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that train and test hold examples of one kind."""
        test = arrays("Task", "test", self.test)
        rows = num_rows("Task", "test", test)
        object.__setattr__(self, "test", test)
        train_row, test_row = _row(self.train.examples), _row(test)
        if train_row != test_row:
            raise DataError(
                "fad.data.Task(train=..., test=...): both must hold the same arrays, "
                f"but a row of train is {train_row} and a row of test is {test_row}."
            )
        check_values("train", self.train)
        check_values("test", Federated(test, np.array([0, rows])))


def _row(examples: dict[str, np.ndarray]) -> dict[str, str]:
    """Describe one row of every array, in the order of the names."""
    return {name: describe(examples[name][0]) for name in sorted(examples)}
