"""A bilevel learning task: the data of two levels, initial values, losses, metrics."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fad._errors import DataError, describe
from fad.data._check_values import check_values
from fad.data._checks import arrays, num_rows
from fad.data._federated import Federated
from fad.data._levels import Levels, check_same_clients
from fad.data._task import Init, narrowed
from fad.estimators import Bilevel, Split

Metrics = Callable[[Any, Any, dict[str, Any]], dict[str, jax.Array]]
SetMetric = Callable[[Any, Any, dict[str, Any]], float]


@dataclasses.dataclass(frozen=True, eq=False)
class BilevelTask:
    """What is learnt at two levels, from which clients, and how it is judged.

    An algorithm for it has ``state.x``, ``state.y`` and ``state.params``, which is
    ``(x, y)``; its cohorts are those of ``train``.

    Args:
        name: A short name for tables and folders.
        lower: The clients' examples of the lower level.
        upper: Those of the upper level, of the same clients in the same order.
        test: The examples held by the server for evaluation, arrays ``[N, *]``.
        init_upper: ``init_upper(key) -> x``.
        init_lower: ``init_lower(key) -> y``.
        problem: The losses of both levels.
        metrics: ``metrics(x, y, examples) -> {name: [batch]}``, per example.
        set_metrics: Functions ``(x, y, test) -> number`` by name, for what is no mean
            over examples.
        narrow: ``narrow(width) -> BilevelTask``, as in ``Task``.
        upper_keys: ``upper_keys(split) -> [k]``, the entries of an upper variable
            ``x: [count]`` that the losses of one client read, each once, -1 for none;
            None where they read all of x.

    Raises:
        DataError: If lower and upper have other clients; arrays of one name differ in
            row shape or dtype; the server's are masked; or an array holds NaN,
            infinity or, without ``jax_enable_x64``, integers of more than 32 bits.

    Example:
        The lower level's y is x plus the mean of its examples; the upper level wants y
        to be three times its own:

        >>> import jax.numpy as jnp
        >>> row = np.ones(4, np.float32)
        >>> clients = Federated({"a": row}, np.array([0, 2, 4]))
        >>> task = BilevelTask(
        ...     name="shift",
        ...     lower=clients,
        ...     upper=clients,
        ...     test={"a": row},
        ...     init_upper=lambda key: jnp.zeros(()),
        ...     init_lower=lambda key: jnp.zeros(()),
        ...     problem=Bilevel(
        ...         upper=lambda x, y, e: (y - 3 * e["a"]) ** 2,
        ...         lower=lambda x, y, e: (y - x - e["a"]) ** 2,
        ...     ),
        ...     metrics=lambda x, y, e: {"distance": abs(y - 3 * e["a"])},
        ... )
        >>> x, y = task.init_upper(None), task.init_lower(None)
        >>> task.metrics(x, y, task.test)["distance"].tolist()
        [3.0, 3.0, 3.0, 3.0]
    """

    name: str
    lower: Federated
    upper: Federated
    test: dict[str, np.ndarray]
    init_upper: Init
    init_lower: Init
    problem: Bilevel
    metrics: Metrics
    set_metrics: Mapping[str, SetMetric] = dataclasses.field(default_factory=dict)
    narrow: Callable[..., "BilevelTask"] | None = None
    upper_keys: Callable[[Split], jax.Array] | None = None

    def __post_init__(self) -> None:
        """Check that clients and arrays fit."""
        call = "BilevelTask"
        test = arrays(call, "test", self.test)
        held = Federated(test, np.array([0, num_rows(call, "test", test)]))
        object.__setattr__(self, "test", test)
        check_same_clients(call, self.lower, self.upper)
        for name in ("lower", "upper"):
            check_values(name, getattr(self, name), call=call, clients=True)
        check_values("test", held, call=call)
        lower, upper = self.lower.examples, self.upper.examples
        _check_rows("lower", lower, "upper", upper)
        _check_rows("lower", lower, "test", test)
        _check_rows("upper", upper, "test", test)

    def at_width(
        self, width: float | tuple[float, ...], *, scaled: bool = False
    ) -> "BilevelTask":
        """Return the task with a share of the units of the model's hidden layers.

        Args:
            width: The share, in (0, 1]; 1 gives the task itself; or, as in
                ``Task.at_width``, a tuple.
            scaled: Whether both losses have the hidden outputs divided by the width, as
                in ``Task.at_width``.

        Returns:
            The task with another ``init_upper``, ``init_lower``, ``problem`` and
            ``metrics``, and the same data.

        Raises:
            DataError: The width is not in (0, 1], or there is one model only.

        Example:
            >>> from fad.experiment import BilevelConfig, DataConfig, ModelConfig
            >>> from fad.experiment import make_bilevel_task
            >>> task = make_bilevel_task(
            ...     DataConfig(clients=10),
            ...     ModelConfig(hidden=(16,)),
            ...     BilevelConfig(task="hyper_cleaning"),
            ... )
            >>> y = task.at_width(0.5).init_lower(jax.random.key(0))
            >>> y["Dense_0"]["kernel"].shape
            (64, 8)
        """
        return narrowed("BilevelTask", self, width, scaled)

    @property
    def train(self) -> Levels:
        """The clients with the examples of both levels, to draw cohorts from."""
        return Levels(self.lower, self.upper)


def _check_rows(
    one: str,
    first: Mapping[str, np.ndarray],
    other: str,
    second: Mapping[str, np.ndarray],
) -> None:
    """Refuse arrays of one name that hold rows of different kinds."""
    for name in sorted(set(first) & set(second)):
        a, b = describe(first[name][0]), describe(second[name][0])
        if a != b:
            raise DataError(
                f"fad.data.BilevelTask({one}=..., {other}=...): a row of {name!r} is "
                f"{a} in {one} and {b} in {other}. Arrays of one name must be alike; "
                "rename one of them."
            )
