"""A learning task: data, initial model, loss and metrics."""

import dataclasses
import numbers
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
        narrow: ``narrow(width) -> Task``, the same with a narrower model, for
            ``at_width``; None where there is one model only. To take ``scaled=True``
            too is for models with HeteroFL's scaler.

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
    narrow: Callable[..., "Task"] | None = None

    def __post_init__(self) -> None:
        """Check that all hold examples of one kind."""
        check_values("train", self.train, clients=True)
        for name in ("test", "validation"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._checked(name))

    def at_width(
        self, width: float | tuple[float, ...], *, scaled: bool = False
    ) -> "Task":
        """Return the task with a share of the units of the model's hidden layers.

        Args:
            width: The share, in (0, 1]; 1 gives the task itself. Where the model can
                (``fad.models.narrow``), a tuple of one for each hidden layer.
            scaled: Whether the loss has the hidden outputs divided by the width
                (HeteroFL's scaler), so that narrow layers answer as loudly as whole
                ones.

        Returns:
            The task with another ``init``, ``loss`` and ``metrics``, and the same data.

        Raises:
            DataError: The width is not in (0, 1], or there is one model only.

        Example:
            >>> from fad.experiment import DataConfig, ModelConfig, make_task
            >>> task = make_task(DataConfig(clients=10), ModelConfig(hidden=(16,)))
            >>> params = task.at_width(0.5).init(jax.random.key(0))
            >>> params["Dense_0"]["kernel"].shape
            (64, 8)
        """
        return narrowed("Task", self, width, scaled)

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


def narrowed(call: str, task: Any, width: Any, scaled: bool) -> Any:
    """Return a task at a width, or at one for each hidden layer.

    Raises:
        DataError: The width is not in (0, 1], or the task has one model only.
    """
    where = f"fad.data.{call}.at_width(width={width!r})"
    shares = width if isinstance(width, tuple) else (width,)
    real = bool(shares) and all(isinstance(share, numbers.Real) for share in shares)
    if not real or not all(0 < share <= 1 for share in shares):
        raise DataError(f"{where}: expected the share of units to keep, in (0, 1].")
    if all(share == 1 for share in shares):
        return task
    if task.narrow is None:
        raise DataError(
            f"{where}: the task {task.name!r} has one model only. Make it with "
            "narrow=, a function from a width to the task of a narrower model."
        )
    return task.narrow(width, scaled=True) if scaled else task.narrow(width)


def _row(examples: dict[str, np.ndarray]) -> dict[str, str]:
    """Describe one row of every array, in the order of the names."""
    return {name: describe(examples[name][0]) for name in sorted(examples)}
