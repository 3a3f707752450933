"""``fad.plan``: what a program will communicate, before it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fad._compat import ClosedJaxpr, Jaxpr, ShapedArray, dce, run_jaxprs
from fad._errors import PlanError
from fad.placement import is_at_clients
from fad.plan._check_axes import FindAxes, leaves_of, named_arguments
from fad.plan._figure import draw
from fad.plan._graph import FEDERATED, Graph
from fad.plan._schedule import schedule
from fad.plan._table import table
from fad.plan._types import nbytes, one_of, server_value, type_text
from fad.plan._values import Round, Value


@dataclass(frozen=True)
class Cost:
    """The totals of a plan.

    Bytes and operations are those of one client. Where not all do the same, they are
    the mean over all clients: what n_t of n clients send counts n_t / n of it, and a
    round's sum is rounded up. So do the tiers of a cohort, programs over slices of it.

    Attributes:
        rounds: Communication rounds: one down-broadcast, client work, one up-sum.
        bytes_down: Bytes each client that takes part in every round receives.
        bytes_up: Bytes it sends.
        client_flops: Floating-point operations of one client.
        client_state_bytes: The most a client must keep from one round to a later one.
        same_cohort: Whether a client must come back in a later round.
    """

    rounds: int
    bytes_down: int
    bytes_up: int
    client_flops: int
    client_state_bytes: int
    same_cohort: bool


@dataclass(frozen=True)
class Plan:
    """A program laid out as communication rounds.

    Attributes:
        name: The function's name.
        clients: The number of clients of the whole: of the client arguments, the
            largest if they differ; of the largest program where there are none.
        rounds: The rounds in order.
    """

    name: str
    clients: int
    rounds: tuple[Round, ...]

    def cost(self) -> Cost:
        """Return the totals."""
        rounds = self.rounds
        return Cost(
            rounds=len(rounds),
            bytes_down=sum(r.bytes_down for r in rounds),
            bytes_up=sum(r.bytes_up for r in rounds),
            client_flops=sum(r.flops for r in rounds),
            client_state_bytes=max((r.state_bytes for r in rounds), default=0),
            same_cohort=any(r.returns for r in rounds),
        )

    def __str__(self) -> str:
        """Return the rounds as a table."""
        return table(self)

    def figure(self) -> Any:
        """Draw the rounds, with matplotlib.

        Returns:
            A ``matplotlib.figure.Figure``; ``savefig`` writes it.

        Raises:
            PlanError: If matplotlib is not installed.
        """
        return draw(self)


def plan(fn: Callable, *, while_bound: int | None = None) -> Callable[..., Plan]:
    """Lay a program, or any derivative of one, out as communication rounds.

    A round is one down-broadcast, client work, and one up-sum. Broadcasts, maps and
    sums that do not wait for each other share a round, so the number of rounds is the
    least that the data dependencies allow. Nothing is compiled or run, and nothing is
    counted that no output needs.

    Args:
        fn: A fad program, or a function of JAX made of programs: a gradient, a tangent,
            a scan over rounds.
        while_bound: The most iterations of a ``while`` loop over rounds.

    Returns:
        A function of ``fn``'s arguments, arrays or ``jax.ShapeDtypeStruct``, that gives
        the ``Plan``.

    Raises:
        PlanError: When called, if ``fn`` holds no federated primitive, or a ``while``
            over rounds without ``while_bound``.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def loss(w, data):
        ...     return fad.mean(fad.map(lambda x: (w * x) ** 2, data))
        >>> data = fad.AtClients(jnp.ones(8))
        >>> cost = fad.plan(jax.grad(loss))(1.0, data).cost()
        >>> cost.rounds, cost.bytes_down, cost.bytes_up
        (1, 8, 4)
    """

    def planned(*args: Any, **kwargs: Any) -> Plan:
        name = getattr(fn, "__name__", type(fn).__name__)
        closed = trace(fn, args, kwargs)
        graph = Graph(while_bound, _cohorts(closed, fn, args, kwargs))
        if not graph.federated(closed.jaxpr):
            raise PlanError(
                f"fad.plan({name}): the function holds no federated primitive "
                "(fad.broadcast, fad.map, fad.sum), so there is no communication to "
                "plan. Give it a fad program or a derivative of one."
            )
        outputs = graph.run(closed, input_values((args, kwargs)))
        rounds = schedule(graph.steps, [*outputs, *graph.asked]).rounds()
        return Plan(name, graph.clients, tuple(rounds))

    return planned


def trace(fn: Callable, args: tuple, kwargs: dict) -> ClosedJaxpr:
    """Trace ``fn`` and drop what no output needs; its inputs all stay."""
    closed = jax.make_jaxpr(fn)(*args, **kwargs)
    return dce(closed, [True] * len(closed.out_avals), keep_inputs=True)[0]


def _cohorts(closed: ClosedJaxpr, fn: Callable, args: tuple, kwargs: dict) -> set[int]:
    """Return the sizes of the cohorts among a program's arguments and constants."""
    named = named_arguments(fn, args, kwargs)
    find = FindAxes([leaf for root, arg in named for leaf in leaves_of(root, arg)])
    find.run(closed, find.values)
    return find.sizes() or set(sorted(programs(closed.jaxpr))[-1:])


def programs(jaxpr: Jaxpr) -> set[int]:
    """Return the numbers of clients of the programs in a jaxpr, at any depth."""
    found = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in FEDERATED:
            found.add(eqn.params["clients"])
        else:
            found.update(*map(programs, run_jaxprs(eqn)))
    return found


def input_values(tree: Any) -> list[Value]:
    """Return the planner's values of a program's arguments, in flat order."""
    values = []
    for leaf in jax.tree.leaves(tree, is_leaf=is_at_clients):
        if is_at_clients(leaf):
            for x in jax.tree.leaves(leaf):
                aval = _aval(x)
                each = one_of(aval)
                values.append(Value("data", nbytes(each), type_text(each)))
        else:
            values.append(server_value(_aval(leaf)))
    return values


def _aval(x: Any) -> ShapedArray:
    if isinstance(x, jax.ShapeDtypeStruct):
        return ShapedArray(x.shape, x.dtype)
    return jax.typeof(jnp.asarray(x))
