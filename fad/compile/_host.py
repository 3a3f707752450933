"""The engine that runs rounds from the host, over client data that is read.

Server work runs eagerly; a sweep is a Python loop over the chunks of the data, each of
which runs one compiled function that adds to the sums. Scans over rounds are Python
loops, so a backward round reads the data again.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fad._compat import scan_parts
from fad._errors import FadError
from fad.compile._chunk import Policy
from fad.compile._estimate import estimate
from fad.compile._execute import execute
from fad.compile._mesh import chunk_on_mesh
from fad.compile._nodes import OneClient, Out, Rows, Sent, Work, parents, rebuild, walk
from fad.compile._program import Step
from fad.compile._reader import Column, Reader
from fad.compile._sinks import Sink
from fad.compile._sweep import run_sweep
from fad.placement import CLIENTS


class Rounds(list):
    """The values of a scan's iterations that are no arrays: made, or read, again."""


def _stacked(values: tuple[Any, ...]) -> Any:
    at_hand = all(isinstance(x, jax.Array | np.ndarray) for x in values)
    return jnp.stack(values) if at_hand else Rounds(values)


class Host:
    """Runs a placed program from the host.

    Attributes:
        compiled: The compiled chunk functions, by what they compute: the same in every
            round.
    """

    def __init__(self, policy: Policy, mesh: Mesh | None, compiled: dict[Any, Any]):
        self.policy, self.mesh, self.compiled = policy, mesh, compiled

    # ---- values --------------------------------------------------------------------

    def rows(self, array: Any, n: int) -> Any:
        """Return the array as it is."""
        del n
        return array

    def plain(self, array: Any) -> Any:
        """Return an array; refuse data that is not at hand."""
        if isinstance(array, Rounds):
            return jnp.stack([self.plain(x) for x in array])
        if isinstance(array, Column):
            raise FadError(
                f"fad.jit: the program uses all clients' values of {array.stream!r} at "
                "once, outside fad.map and fad.sum (indexing, returning or gathering "
                "them). Move that into fad.map, or pass the data as fad.AtClients."
            )
        return array

    def unstreamed(self, step: Step) -> None:
        """Refuse what needs all clients at once."""
        name = step.eqn.eqn.params.get("name") or step.eqn.name
        raise FadError(
            f"fad.jit: {name} cannot run chunk by chunk over a fad.stream: {step.why}. "
            "Pass the data as fad.AtClients."
        )

    # ---- loops ---------------------------------------------------------------------

    def loop(self, step: Step, args: list[Any]) -> list[Any]:
        """Run a loop in Python."""
        return getattr(self, f"_{step.eqn.name}")(step, args)

    def _scan(self, step: Step, args: list[Any]) -> list[Any]:
        scan, (body,) = scan_parts(step.eqn.eqn), step.subs
        first_x = scan.num_consts + scan.num_carry
        consts, carry = args[: scan.num_consts], args[scan.num_consts : first_x]
        order = range(scan.length)
        if not order:
            empty = [ref.aval for ref in step.eqn.outs[scan.num_carry :]]
            return [*carry, *(jnp.zeros(a.shape, a.dtype) for a in empty)]
        ys: dict[int, list[Any]] = {}
        for i in reversed(order) if scan.reverse else order:
            slices = [x[i] for x in args[first_x:]]
            outs = execute(body, [*consts, *carry, *slices], self)
            carry, ys[i] = outs[: scan.num_carry], outs[scan.num_carry :]
        columns = zip(*(ys[i] for i in order), strict=True)
        return [*carry, *map(_stacked, columns)]

    def _cond(self, step: Step, args: list[Any]) -> list[Any]:
        index = int(np.clip(args[0], 0, len(step.subs) - 1))
        return execute(step.subs[index], args[1:], self)

    def _while(self, step: Step, args: list[Any]) -> list[Any]:
        p, (test, body) = step.eqn.eqn.params, step.subs
        a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        carry = list(args[b:])
        while execute(test, [*args[:a], *carry], self)[0]:
            carry = execute(body, [*args[a:b], *carry], self)
        return carry

    # ---- sweeps --------------------------------------------------------------------

    def sweep(self, n: int, sinks: Sequence[Sink]) -> list[Any]:
        """Read the data once, and run every chunk's client work."""
        client = OneClient([v for sink in sinks for v in sink.values])
        reader = Reader([x.array for x in client.rows], n, self.mesh)
        sent = self._everywhere([jnp.asarray(x.array) for x in client.sent])
        key = (_structure(client, sinks), reader.size, _types(sent), reader.types)
        if key not in self.compiled:
            self.compiled[key] = self._chunk(client, sinks, reader.size)
        run = self.compiled[key]
        sums = self._everywhere([s.zeros() for s in sinks if not s.rows])
        kept = [_Kept(n) for s in sinks if s.rows]
        with contextlib.closing(iter(reader)) as chunks:
            for start, rows, valid in chunks:
                # One chunk at a time: what waits in line would hold its rows.
                sums, outs = run(jax.block_until_ready(sums), sent, rows, valid)
                for values, y in zip(kept, outs, strict=True):
                    values.add(y, start, valid)
        totals = iter(jax.tree.map(self._here, sums))
        stacks = iter([values.array() for values in kept])
        return [next(stacks) if s.rows else s.result(next(totals)) for s in sinks]

    def _chunk(self, client: OneClient, sinks: Sequence[Sink], size: int) -> Callable:
        """Compile the work of ``size`` clients, without a hold on any value."""
        devices = 1 if self.mesh is None else self.mesh.shape[CLIENTS]
        cost = estimate(client, sinks) if self.policy.estimates else None
        chunk = self.policy.pick(size // devices, cost)
        work, wanted = _hollow(client), [copy.copy(s) for s in sinks]
        for sink in wanted:
            sink.values = [None] * len(sink.values)

        def run(sums, sent, rows, valid):
            options = {"n": size, "chunk": chunk, "valid": valid}
            if self.mesh is None:
                outs, _ = run_sweep(work, wanted, sent, rows, **options)
            else:
                outs, _ = chunk_on_mesh(self.mesh, work, wanted, sent, rows, **options)
            new = iter([y for s, y in zip(wanted, outs, strict=True) if not s.rows])
            sums = [jax.tree.map(jnp.add, x, next(new)) for x in sums]
            return sums, [y for s, y in zip(wanted, outs, strict=True) if s.rows]

        return jax.jit(run, donate_argnums=0)

    def _everywhere(self, arrays: list[Any]) -> list[Any]:
        if self.mesh is None:
            return arrays
        return jax.device_put(arrays, NamedSharding(self.mesh, PartitionSpec()))

    def _here(self, array: Any) -> Any:
        """Return a sum on one device, where the server works."""
        return array if self.mesh is None else array.addressable_data(0)


class _Kept:
    """All clients' values of one result, gathered in the host's memory."""

    def __init__(self, n: int):
        self.n, self.rows, self.impl = n, np.empty(0), None

    def add(self, values: jax.Array, start: int, count: int) -> None:
        if jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
            self.impl = jax.random.key_impl(values)
            values = jax.random.key_data(values)
        if start == 0:
            self.rows = np.empty((self.n, *values.shape[1:]), values.dtype)
        self.rows[start : start + count] = np.asarray(values)[:count]

    def array(self) -> jax.Array:
        rows = jnp.asarray(self.rows)
        return (
            rows
            if self.impl is None
            else jax.random.wrap_key_data(rows, impl=self.impl)
        )


def _hollow(client: OneClient) -> OneClient:
    """Return the same work with nothing at its leaves."""
    memo: dict[int, Any] = {id(x): Sent(None) for x in client.sent}
    memo |= {id(x): Rows(None) for x in client.rows}
    return OneClient(rebuild(client.values, memo))


def _types(arrays: Sequence[Any]) -> tuple:
    return tuple((x.shape, str(x.dtype)) for x in arrays)


def _structure(client: OneClient, sinks: Sequence[Sink]) -> tuple:
    """Return what a sweep computes, whatever the arrays at its leaves."""
    number: dict[int, int] = {}
    out = []
    for i, node in enumerate(walk(client.values)):
        number[id(node)] = i
        what: Any = type(node).__name__
        if isinstance(node, Work):
            what = id(node.jaxpr) if node.jaxpr is not None else id(node.fn)
        elif isinstance(node, Out):
            what = node.index
        out.append((what, tuple(number[id(p)] for p in parents(node))))
    ends = tuple((*(number[id(v)] for v in s.values), s.key()) for s in sinks)
    return tuple(out), ends
