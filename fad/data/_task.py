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
        validation: Examples that the server holds for learning what is learned on
            clean data, arrays ``[V, *]``; None without.

    Raises:
        DataError: If train, test and validation differ in their names, row shapes or
            dtypes, the server's hold a masked array, or an array holds NaN, infinity
            or, without ``jax_enable_x64``, integers of more than 32 bits: where, by
            array, column and client.

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
    validation: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        """Check that all hold examples of one kind."""
        check_values("train", self.train, clients=True)
        for name in ("test", "validation"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._checked(name))

    def _checked(self, name: str) -> dict[str, np.ndarray]:
        """Return the server's examples of a name, which must be as those of train."""
        held = arrays("Task", name, getattr(self, name))
        rows = num_rows("Task", name, held)
        train_row, row = _row(self.train.examples), _row(held)
        if train_row != row:
            raise DataError(
                f"fad.data.Task(train=..., {name}=...): both must hold the same "
                f"arrays, but a row of train is {train_row} and a row of {name} is "
                f"{row}."
            )
        check_values(name, Federated(held, np.array([0, rows])))
        return held


def _row(examples: dict[str, np.ndarray]) -> dict[str, str]:
    """Describe one row of every array, in the order of the names."""
    return {name: describe(examples[name][0]) for name in sorted(examples)}
