"""What is known of a value while client axes are followed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fad._compat import JaxprEqn
from fad.plan._report import Aggregate, Allowed

Labels = frozenset[Any]
CLIENT: Labels = frozenset()


@dataclass(frozen=True)
class Placed:
    """One value: where its client axes are, and what it depends on.

    Attributes:
        axes: Its client axes by position, none at the server. Each carries labels:
            which clients it has; or which argument's axis it may be, while that is
            being found out.
        depends: The sums, and what was allowed, upstream.
        constant: Whether it is made of literals alone, so that it tells nothing.
        maker: What made it, for a message.
        made: The equation that made it and those around it, the innermost first; none
            for an argument.
    """

    axes: dict[int, Labels] = field(default_factory=dict)
    depends: frozenset[Aggregate | Allowed] = frozenset()
    constant: bool = False
    maker: str = field(default="", compare=False)
    made: tuple[JaxprEqn, ...] = field(default=(), compare=False)


def any_client(ins: Sequence[Placed]) -> bool:
    return any(x.axes for x in ins)


def shifted(value: Placed, by: int) -> dict[int, Labels]:
    return {a + by: labels for a, labels in value.axes.items() if a + by >= 0}


def mapped(value: Placed, clients: Labels = CLIENT) -> dict[int, Labels]:
    return {0: clients, **shifted(value, 1)}


def at_server(ins: Sequence[Placed], allowed: Allowed | None = None) -> Placed:
    """Return a server value made of ``ins``, and of what was allowed."""
    depends = frozenset().union(*(x.depends for x in ins))
    if allowed is not None:
        return Placed({}, depends | {allowed})
    return Placed({}, depends, all(x.constant for x in ins))
