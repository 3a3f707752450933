"""When clients search for masks, and how the masks depend on the model.

That dependence is the second term of FedSep's encoder.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fad
from algorithms._mask_search import Search
from algorithms._submodel_round import Own
from fad import submodels

Masks = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Searches:
    """When clients search: in their first round, and in some of all rounds.

    Attributes:
        search: The search for masks.
        budgets: The share of operations of each tier.
        refresh: Rounds from one search to the next; 0 for none.
    """

    search: Search
    budgets: tuple[float, ...]
    refresh: int

    def own(self, *, both: bool) -> Own:
        """Return what clients keep; with ``both`` terms of the encoder or the first."""

        def first(state):
            return self.search.init(state.params)

        return Own(first, self._all, self._more if both and self.refresh else None)

    def _wants(self, state, batches, memory, budget):
        """Search where it is time, there is something to leave out, and an example."""
        due = (state.rounds % self.refresh == 0) | (memory.searches == 0)
        return due & (budget < 1) & jnp.any(batches.mask)

    def _one(self, state, key, params, batches, memory, budget):
        drawn = fad.local.client_key(key, batches.client)
        return jax.lax.cond(
            self._wants(state, batches, memory, budget),
            lambda: self.search.run(params, batches, memory, budget, drawn),
            lambda: memory,
        )

    def _all(self, state, cohort, key, memory):
        """Let the clients search, if one at least wants to."""
        if self.refresh == 0:
            return memory
        each = jnp.asarray(self.budgets)
        each = fad.AtClients(each.repeat(cohort.num_clients // len(self.budgets)))
        fixed = jax.lax.stop_gradient(state.params)  # the chosen units have no slope

        def count(*client):
            return self._wants(state, *client).astype(jnp.float32)

        @fad.program
        def refreshed(cohort, memory, budget):
            def all_search(memory):
                def work(*client):
                    return self._one(state, key, fixed, *client)

                return fad.map(work, cohort, memory, budget)

            some = fad.sum(fad.map(count, cohort, memory, budget)) > 0
            return jax.lax.cond(some, all_search, lambda memory: memory, memory)

        return refreshed(cohort, memory, each)

    def _more(self, state, key, tier):
        def at_client(params, keys, delta, batches, new, old):
            del new

            def masks(params):
                budget = jnp.asarray(self.budgets[tier])
                return self.search.relaxed(
                    self._one(state, key, params, batches, old, budget)
                )

            return second_term(masks, self.search.units, params, keys, delta)

        return at_client


def second_term(
    masks: Callable[[Any], Masks],
    units: submodels.Units,
    params: Any,
    keys: Any,
    delta: Any,
) -> Any:
    """Return ``(Diag(omega) da/domega)^T d`` for one client, like the params.

    Args:
        masks: ``masks(params) -> {group: [size]}``, the client's masks a.
        units: The model's units.
        params: The model omega.
        keys: Which slices of it the client has.
        delta: Their update d.
    """
    ones = {name: jnp.ones(size) for name, size in units.sizes.items()}
    whole = jax.tree.map(_placed, params, keys, delta)
    _, of_masks = jax.vjp(
        lambda a: submodels.masked(units, params, a, places="all"), ones
    )
    found, of_params = jax.vjp(masks, params)
    (change,) = of_masks(whole)
    change = {name: change[name].astype(a.dtype) for name, a in found.items()}
    return of_params(change)[0]


def _placed(like: jax.Array, keys: dict[int, jax.Array] | None, x: Any) -> jax.Array:
    """Put a slice into zeros; what the key -1 names is dropped."""
    keys = keys or {}
    at = [keys.get(d, jnp.arange(size)) for d, size in enumerate(like.shape)]
    at = [jnp.where(k < 0, n, k) for k, n in zip(at, like.shape, strict=True)]
    return jnp.zeros_like(like).at[jnp.ix_(*at)].set(x, mode="drop")
