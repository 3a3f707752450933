"""What one client's work costs on this machine, from its jaxpr alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from fad._compat import Jaxpr, Literal, jaxprs_in_params, scan_parts
from fad.compile._nodes import OneClient
from fad.compile._pull import chunk_sums
from fad.compile._sinks import Sink
from fad.plan._flops import count_flops
from fad.plan._graph import aval_of, nbytes


@dataclass(frozen=True)
class Estimate:
    """One client's share of a sweep.

    Attributes:
        flops: Floating-point operations.
        equations: Equations run, loops counted out.
        nbytes: Bytes of intermediate values alive at once.
        shared: Whether the sums are pulled through the work, so that a larger chunk
            makes larger matrix products instead of more of them.
    """

    flops: int
    equations: int
    nbytes: int
    shared: bool


def estimate(client: OneClient, sinks: Sequence[Sink]) -> Estimate:
    """Estimate one client's work in a sweep, by tracing it."""
    sent = [_struct(x.array) for x in client.sent]
    row = [_struct(x.array, drop=1) for x in client.rows]
    jaxpr = jax.make_jaxpr(client)(sent, row).jaxpr
    return Estimate(
        count_flops(jaxpr), _count(jaxpr), _alive(jaxpr), _shared(client, sinks)
    )


def _struct(x: Any, drop: int = 0) -> jax.ShapeDtypeStruct:
    aval = x.aval if hasattr(x, "aval") else jax.typeof(x)
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape[drop:], aval.dtype, weak_type=weak)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            part = scan_parts(eqn)
            total += part.length * (1 + _count(part.body.jaxpr))
        else:
            inner = [_count(j) for j in jaxprs_in_params(eqn.params)]
            total += max(inner, default=1)
    return total


def _alive(jaxpr: Jaxpr) -> int:
    """Return the most bytes of equations' results that are alive at once."""
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if _is_var(v)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if _is_var(v)}
    now = most = 0
    dying: dict[int, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        inner = max(map(_alive, jaxprs_in_params(eqn.params)), default=0)
        for v in eqn.outvars:
            size = nbytes(aval_of(v))
            now += size
            end = last.get(v, i)
            dying[end] = dying.get(end, 0) + size
        most = max(most, now + inner)
        now -= dying.pop(i, 0)
    return most


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, Literal)


def _shared(client: OneClient, sinks: Sequence[Sink]) -> bool:
    """Say whether hardly any per-client value is made only to be added up."""
    sums = [s.pulled for s in sinks for _ in s.values]
    wanted = sum(nbytes(s.aval) for s in sinks if s.pulled)
    sent = [_struct(x.array) for x in client.sent]
    one = [_struct(x.array, drop=1) for x in client.rows]
    pair = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in one]
    found = []

    def two(sent, rows):
        each = jax.vmap(client, in_axes=(None, 0), axis_size=2)
        outs, pulled = chunk_sums(each, (sent, rows), sums)
        found.append(pulled)
        return outs

    jax.eval_shape(two, sent, pair)
    return found[-1].products > 0 and found[-1].tiled < 0.5 * 2 * wanted
