"""Sums over clients pulled through the last linear steps of their work.

The gradient of a mean is one matrix product over all clients' examples; the mean of
gradients makes one matrix per client first. With ``S`` the sum over clients, ``m_i`` a
mask and ``s_i`` a number per client,

    S(m s (u + v))      = S(m s u) + S(m s v)
    S(m s (t v))        = S(m (s t) v)                  t_i a number per client
    S(m s select(p, u, v)) = S((m not p) s u) + S((m p) s v)    p_i a truth value
    S(m s x_i^T d_i)    = X^T D,  contracted over examples *and* clients.

A factor that is masked out counts as zero even where it is not finite, as the select
that it stands for would have it. What no rule knows is computed for each client and
added up. Values that something else needs for each client are not pulled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fad.compile._flatten import Eqn, Flat, Ref, flatten, run_eqn, shape_of
from fad.compile._linear import LINEAR, RULES, same_for_all
from fad.compile._weights import Weights
from fad.plan._graph import nbytes

DEEP = 64  # rules within rules, each a few frames of Python's stack
MANY = 4  # times that one value is summed with other weights


@dataclass
class Pulled:
    """What became of the sums.

    Attributes:
        products: Matrix products that contract over the clients.
        tiled: Bytes of the per-client values that were made and then added up.
    """

    products: int = 0
    tiled: int = 0


def chunk_sums(
    work: Callable[..., list[Any]],
    args: Sequence[Any],
    summed: Sequence[bool],
    mask: Any = None,
) -> tuple[list[Any], Pulled]:
    """Run a chunk's work, with some of its results summed over the clients.

    Args:
        work: ``work(*args) -> [[c, *s], ...]``, all clients of a chunk at once.
        args: Its arrays.
        summed: Which results to sum over axis 0.
        mask: ``[c]``, which clients count in the sums; None for all.

    Returns:
        The results, and what became of the sums.
    """
    flat = flatten(jax.make_jaxpr(work)(*args))
    run, weights = Demand(flat, jax.tree.leaves(args), summed), Weights(mask=mask)
    outs = [
        run.total(ref, 0, weights) if on else run.value(ref)
        for ref, on in zip(flat.outputs, summed, strict=True)
    ]
    return outs, run.report


class Demand:
    """Evaluates a flat program as its results are asked for.

    Attributes:
        report: What became of the sums.
        made: The equation that makes a value, by ``id``.
        clients: The size of the clients' axis.
    """

    def __init__(self, flat: Flat, args: Sequence[Any], summed: Sequence[bool]):
        self.report = Pulled()
        self.env = {id(r): x for r, x in zip(flat.inputs, args, strict=True)}
        self.made = {id(ref): eqn for eqn in flat.eqns for ref in eqn.outs}
        self.clients = next((shape_of(ref)[0] for ref in flat.outputs), 0)
        self._only_summed = _only_summed(flat, summed)
        self._sums: dict[int, list[tuple[int, Weights, Any]]] = {}
        self._depth = 0

    def value(self, ref: Ref) -> Any:
        """Return a value, running what it needs."""
        if ref.value is not None:
            return ref.value
        stack = [ref]
        while stack:
            top = stack[-1]
            if id(top) in self.env or top.value is not None:
                stack.pop()
                continue
            eqn = self.made[id(top)]
            missing = [r for r in eqn.ins if r.value is None and id(r) not in self.env]
            if missing:
                stack += missing
                continue
            outs = run_eqn(eqn, [self.value(r) for r in eqn.ins])
            self.env.update((id(r), x) for r, x in zip(eqn.outs, outs, strict=True))
            stack.pop()
        return self.env[id(ref)]

    def total(self, ref: Ref, axis: int, weights: Weights) -> Any:
        """Return the weighted sum of a value over the clients at ``axis``."""
        known = self._sums.setdefault(id(ref), [])
        for at, of, out in known:
            if at == axis and of is weights:
                return out
        same = same_for_all(self, ref, axis)
        if same is not None:
            return weights.repeated(same, self.clients)
        out = self._pulled(ref, axis, weights) if len(known) < MANY else None
        if out is None:
            if ref.value is None:
                self.report.tiled += nbytes(ref.aval)
            x = weights.apply(jnp.asarray(self.value(ref)), axis)
            out = x.sum(axis, dtype=x.dtype)
        known.append((axis, weights, out))
        return out

    def _pulled(self, ref: Ref, axis: int, weights: Weights) -> Any:
        eqn = self.made.get(id(ref))
        if eqn is None or id(ref) in self.env or id(ref) not in self._only_summed:
            return None
        rule = RULES.get(eqn.name)
        if rule is None or self._depth >= DEEP:
            return None
        self._depth += 1
        try:
            return rule(self, eqn, axis, weights)
        finally:
            self._depth -= 1


def _only_summed(flat: Flat, summed: Sequence[bool]) -> set[int]:
    """Return what nobody needs for each client: all its uses are linear, and summed."""
    firm = {id(r) for r, on in zip(flat.outputs, summed, strict=True) if not on}
    found: set[int] = set()

    def is_summed(eqn: Eqn, i: int) -> bool:
        if eqn.name == "is_finite":  # ``fad.weighted_mean`` asks; see ``_guarded``
            return True
        return i in LINEAR.get(eqn.name, ()) and id(eqn.outs[0]) in found

    for eqn in reversed(flat.eqns):
        for ref in eqn.outs:
            if id(ref) not in firm and all(is_summed(*use) for use in ref.uses):
                found.add(id(ref))
    return found
