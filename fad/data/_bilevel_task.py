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
from fad.data._task import Init
from fad.estimators import Bilevel

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
