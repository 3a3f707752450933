"""Client values that are not computed yet: a graph over what one client does.

A sweep runs the part of the graph that its results need, for a chunk of clients at a
time. What is needed again in a later round is computed again there, from the server
values that the clients received: nothing of the size ``[n, *s]`` waits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from fad._compat import ClosedJaxpr, dce
from fad.compile._flatten import flatten, run_flat


@dataclass(eq=False, repr=False)
class Sent:
    """A server value at every client: ``array`` is ``[*s]``, the same for all."""

    array: Any


@dataclass(eq=False, repr=False)
class Rows:
    """Client values at hand: ``array`` is ``[n, *s]``, one row per client."""

    array: Any


@dataclass(eq=False, repr=False)
class Work:
    """What each client computes from ``ins``.

    Attributes:
        ins: Nodes, or ``Out`` of nodes.
        name: For the report.
        jaxpr: One client's work; else ``fn`` is it.
        fn: A function of one client's operands, one result.
    """

    ins: list[Any]
    name: str
    jaxpr: ClosedJaxpr | None = None
    fn: Callable[..., Any] | None = None


@dataclass(eq=False, repr=False)
class Choice:
    """One of several lists of values, by an index at the server."""

    index: Sent
    branches: list[list[Any]]
    avals: list[Any]


@dataclass(eq=False, repr=False)
class Out:
    """Result number ``index`` of a ``Work`` or ``Choice``."""

    node: Work | Choice
    index: int


Lazy = Sent | Rows | Out


def leaves(values: Sequence[Any]) -> list[Sent | Rows]:
    """Return the leaves of some values, each once, in a fixed order."""
    found: dict[int, Sent | Rows] = {}
    for node in walk(values):
        if isinstance(node, Sent | Rows):
            found.setdefault(id(node), node)
    return list(found.values())


def parents(node: Any) -> list[Any]:
    """Return what a node reads."""
    if isinstance(node, Out):
        return [node.node]
    if isinstance(node, Work):
        return node.ins
    if isinstance(node, Choice):
        return [node.index, *(v for branch in node.branches for v in branch)]
    return []


def walk(values: Sequence[Any]) -> Iterator[Any]:
    """Yield every node that some values need, operands first, each once."""
    done: set[int] = set()
    stack = [(v, False) for v in reversed(values)]
    while stack:
        node, ready = stack.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            yield node
        else:
            stack.append((node, True))
            stack += [(p, False) for p in reversed(parents(node))]


def rebuild(values: Sequence[Any], memo: dict[int, Any]) -> list[Any]:
    """Copy graphs with other leaves: ``memo`` maps ``id(leaf)`` to the new one."""
    for node in walk(values):
        if id(node) in memo:
            continue
        if isinstance(node, Work):
            ins = [memo[id(v)] for v in node.ins]
            memo[id(node)] = Work(ins, node.name, node.jaxpr, node.fn)
        elif isinstance(node, Choice):
            branches = [[memo[id(v)] for v in b] for b in node.branches]
            memo[id(node)] = Choice(memo[id(node.index)], branches, node.avals)
        elif isinstance(node, Out):
            memo[id(node)] = Out(memo[id(node.node)], node.index)
        else:
            memo[id(node)] = node
    return [memo[id(v)] for v in values]


@dataclass(eq=False, repr=False)
class OneClient:
    """The computation of some values at one client.

    Attributes:
        sent: The ``Sent`` leaves, in the order of the first argument.
        rows: The ``Rows`` leaves, in the order of the second.
        names: The names of the work, in order.
        equations: The number of equations of the work.
    """

    values: list[Any]
    sent: list[Sent] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    equations: int = 0

    def __post_init__(self):
        """Find the leaves and the work."""
        for node in walk(self.values):
            if isinstance(node, Sent):
                self.sent.append(node)
            elif isinstance(node, Rows):
                self.rows.append(node)
            elif isinstance(node, Work) and node.jaxpr is not None:
                self.names.append(node.name)
                self.equations += len(node.jaxpr.jaxpr.eqns)

    def __call__(self, sent: Sequence[Any], rows: Sequence[Any]) -> list[Any]:
        """Return the values, from one client's operands."""
        env = {id(k): v for k, v in zip(self.sent, sent, strict=True)}
        env |= {id(k): v for k, v in zip(self.rows, rows, strict=True)}
        return _evaluate(self.values, env)


def _evaluate(values: Sequence[Any], env: dict[int, Any]) -> list[Any]:
    needed = _needed(values)
    for node in _order(values, env):
        if isinstance(node, Out):
            env[id(node)] = env[id(node.node)][node.index]
        elif isinstance(node, Work):
            env[id(node)] = _run(node, needed.get(id(node), set()), env)
        elif isinstance(node, Choice):
            env[id(node)] = _choose(node, env)
    return [env[id(v)] for v in values]


def _order(values: Sequence[Any], env: dict[int, Any]) -> list[Any]:
    """Return what is to be run; the insides of a choice are its own business."""
    order, done = [], set()

    def visit(node: Any) -> None:
        stack = [(node, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done or id(node) in env:
                continue
            if ready:
                done.add(id(node))
                order.append(node)
                continue
            stack.append((node, True))
            if not isinstance(node, Choice):
                stack += [(p, False) for p in reversed(parents(node))]

    for value in values:
        visit(value)
    return order


def _needed(values: Sequence[Any]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for node in (*walk(values), *values):
        for v in (node, *parents(node)):
            if isinstance(v, Out):
                found.setdefault(id(v.node), set()).add(v.index)
    return found


def _run(node: Work, used: set[int], env: dict[int, Any]) -> list[Any]:
    ins = [env[id(v)] for v in node.ins]
    if node.jaxpr is None:
        assert node.fn is not None
        return [node.fn(*ins)]
    mask = [i in used for i in range(len(node.jaxpr.out_avals))]
    pruned, reads = dce(node.jaxpr, mask)
    flat = flatten(pruned)  # A loop of one step must not hide its steps from ``vmap``.
    outs = iter(run_flat(flat, [v for v, on in zip(ins, reads, strict=True) if on]))
    return [next(outs) if on else None for on in mask]


def _choose(node: Choice, env: dict[int, Any]) -> list[Any]:
    def branch(values):
        def run():
            outs = _evaluate(values, dict(env))
            return [
                jnp.broadcast_to(v, a.shape).astype(a.dtype)
                for v, a in zip(outs, node.avals, strict=True)
            ]

        return run

    return jax.lax.switch(env[id(node.index)], [branch(b) for b in node.branches])
