"""One sweep over the clients: their work, a chunk at a time, inside one loop.

Server values are not tiled, sums are accumulated, and only a chunk's intermediate
values exist at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad.compile._nodes import OneClient
from fad.compile._pull import Pulled, chunk_sums
from fad.compile._sinks import Sink


def run_sweep(
    client: OneClient,
    sinks: Sequence[Sink],
    sent: Sequence[Any],
    rows: Sequence[Any],
    *,
    n: int,
    chunk: int,
    valid: Any = None,
) -> tuple[list[Any], Pulled]:
    """Run client work over ``n`` rows in chunks.

    Args:
        client: One client's work.
        sinks: What is wanted of its values.
        sent: The server's values, ``[*s]``.
        rows: The clients' values, ``[n, *s]``.
        n: Number of rows.
        chunk: Clients at a time; 1 runs one client's work as it is, without ``vmap``.
        valid: How many of the rows count (the others fill a device up); None for all.

    Returns:
        Per sink the totals, no ``result`` yet, or the rows ``[n, *s]``; and what became
        of the sums.
    """
    work = _Chunks(client, sinks, sent, rows, valid)
    total, stacked = work.zeros(), []
    whole = n // chunk
    if whole > 1:

        def body(carry, _):  # counting, because a list of numbers would grow with n
            i, sums = carry
            sums, stacks = work.add(sums, i * chunk, chunk)
            return (i + 1, sums), stacks

        start = jnp.int32(0), total
        (_, total), stacks = jax.lax.scan(body, start, length=whole)
        stacked.append([x.reshape(whole * chunk, *x.shape[2:]) for x in stacks])
    elif whole == 1:
        total, one = work.add(total, 0, chunk)
        stacked.append(one)
    if n % chunk:
        total, rest = work.add(total, whole * chunk, n % chunk)
        stacked.append(rest)
    return work.results(total, stacked), work.pulled


class _Chunks:
    """The work of a chunk of clients, and what is gathered over chunks."""

    def __init__(self, client: Callable, sinks: Sequence[Sink], sent, rows, valid):
        self.client, self.sinks, self.valid = client, sinks, valid
        self.sent, self.rows = sent, rows
        self.pulled = Pulled()

    def zeros(self) -> list[Any]:
        return [s.zeros() for s in self.sinks if not s.rows]

    def add(self, totals: Sequence[Any], start: Any, size: int) -> tuple[list, list]:
        """Add a chunk's contributions; return the totals, and the chunk's rows."""
        counts = self.counting(start, size)
        chunk = self.one if size == 1 else self.several
        pairs = list(zip(self.sinks, chunk(start, size, counts), strict=True))
        old = iter(totals)
        new = [sink.add(next(old), part) for sink, part in pairs if not sink.rows]
        return new, [part for sink, part in pairs if sink.rows]

    def one(self, start: Any, size: int, counts: Any) -> list[Any]:
        """Return the contributions of one client, without ``vmap``."""
        row = [jax.lax.dynamic_index_in_dim(x, start, 0, False) for x in self.rows]
        outs = iter([jnp.asarray(y)[None] for y in self.client(self.sent, row)])
        return [s.part([next(outs) for _ in s.values], counts) for s in self.sinks]

    def several(self, start: Any, size: int, counts: Any) -> list[Any]:
        """Return what a chunk contributes, sums pulled through where they can be."""
        some = [jax.lax.dynamic_slice_in_dim(x, start, size) for x in self.rows]
        each = jax.vmap(self.client, in_axes=(None, 0), axis_size=size)
        pull = [s.pulled for s in self.sinks for _ in s.values]
        made, self.pulled = chunk_sums(each, (self.sent, some), pull, counts)
        outs = iter(made)
        parts = [[next(outs) for _ in s.values] for s in self.sinks]
        return [
            values[0] if s.pulled else s.part(values, counts)
            for s, values in zip(self.sinks, parts, strict=True)
        ]

    def counting(self, start: Any, size: int) -> jax.Array | None:
        """Say which clients of a chunk count; None for all."""
        if self.valid is None:
            return None
        return start + jnp.arange(size, dtype=jnp.int32) < self.valid

    def results(self, sums: Sequence[Any], stacked: Sequence[Sequence[Any]]) -> list:
        totals = iter(sums)
        columns = [list(c) for c in zip(*stacked, strict=True)]
        stacks = iter(jnp.concatenate(c) if len(c) > 1 else c[0] for c in columns)
        return [next(stacks) if s.rows else next(totals) for s in self.sinks]
