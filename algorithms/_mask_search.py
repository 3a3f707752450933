"""Which units a client keeps: a mask network, trained on the client's own batches.

For a model omega and a budget q, a share of its operations T_tot, a client's network
HN(phi) is trained by steps on

    L(a * omega) + beta log(max(T(a), q T_tot) / (q T_tot)),
    a = round(sigmoid((HN(phi) + Gumbel noise) / tau))

a has a number for each hidden unit, by which the next layers' weights are multiplied.
Its derivative is that of the sigmoid ("straight through"). T(a) is the polynomial of
``fad.submodels.costs``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

import fad
from algorithms._labels import known_labels, own_labels
from fad import models, submodels


class Memory(NamedTuple):
    """What a client keeps: its network, the optimizer's memory, and the scores."""

    network: Any
    optimizer: Any
    scores: dict[str, jax.Array]
    searches: jax.Array


@dataclasses.dataclass(frozen=True)
class Search:
    """The search for masks.

    Attributes:
        loss: The whole model's loss, one number for each example.
        units: Its hidden units.
        costs: Its costs.
        optimizer: The network's; its memory is kept with the network.
        steps: The steps of a search, each on one of the client's batches.
        beta: The weight of the costs.
        temperature: The sigmoid's tau.
        hidden: The size of the network.
        rounded: Whether masks are zeros and ones in training too.
        head: The last layer, if clients leave out the labels that they do not have.
    """

    loss: Callable[..., jax.Array]
    units: submodels.Units
    costs: submodels.Costs
    optimizer: optax.GradientTransformation
    steps: int
    beta: float
    temperature: float
    hidden: int
    rounded: bool = True
    head: str = ""

    def init(self, params: Any) -> Memory:
        """Return a client's memory before its first search."""
        phi = self._network(params).init(jax.random.key(0))
        none = jnp.zeros((), jnp.int32)
        return Memory(phi, self.optimizer.init(phi), self._scores(phi, params), none)

    def run(
        self, params: Any, batches: Any, memory: Memory, budget: Any, key: jax.Array
    ) -> Memory:
        """Return the memory after a search within a share of the operations."""
        real = jnp.any(batches.mask, axis=1)
        order = jnp.argsort(~real, stable=True)  # batches of padding come last
        count, known = jnp.maximum(jnp.sum(real), 1), None
        if self.head:
            known = own_labels(batches, params[self.head]["bias"].size)

        def step(carry, s):
            at = order[s % count]
            rows = jax.tree.map(lambda x: x[at][None], batches.examples)
            batch = fad.local.Batches(rows, batches.mask[at][None], batches.client)
            drawn = jax.random.fold_in(key, s)
            given = params, batch, known, budget, drawn
            slope = jax.grad(self._objective)(carry[0], *given)
            updates, state = self.optimizer.update(slope, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        start = memory.network, memory.optimizer
        (phi, state), _ = jax.lax.scan(step, start, jnp.arange(self.steps))
        scores = self._scores(phi, params)
        return Memory(phi, state, scores, memory.searches + 1)

    def relaxed(self, memory: Memory) -> dict[str, jax.Array]:
        """Return masks between 0 and 1, without noise."""
        tau = self.temperature
        return {name: jax.nn.sigmoid(w / tau) for name, w in memory.scores.items()}

    def _network(self, params: Any) -> Any:
        wide = any(x.dtype == jnp.float64 for x in jax.tree.leaves(params))
        dtype = jnp.float64 if wide else jnp.float32
        sizes = tuple(self.units.sizes.values())
        return models.MaskNetwork(sizes, hidden=self.hidden, param_dtype=dtype)

    def _scores(self, phi: Any, params: Any) -> dict[str, jax.Array]:
        scores = self._network(params).apply(phi)
        return dict(zip(self.units.sizes, scores, strict=True))

    def _masks(self, phi: Any, params: Any, key: jax.Array) -> dict[str, jax.Array]:
        found = {}
        for i, (name, w) in enumerate(self._scores(phi, params).items()):
            noise = jax.random.gumbel(jax.random.fold_in(key, i), w.shape, w.dtype)
            soft = jax.nn.sigmoid((w + noise) / self.temperature)
            hard = soft + stop_gradient(jnp.round(soft) - soft)
            found[name] = hard if self.rounded else soft
        return found

    def _objective(
        self, phi: Any, params: Any, batch: Any, known: Any, budget: Any, key: jax.Array
    ) -> jax.Array:
        a, loss = self._masks(phi, params, key), self.loss
        if known is not None:
            loss = known_labels(loss, known, self.head)
        on = submodels.masked(self.units, params, a)
        mean, _ = fad.local.evaluate(on, batch, loss=loss)
        share = self.costs.flops({k: jnp.mean(v) for k, v in a.items()})
        excess = share / self.costs.total / budget.astype(share.dtype)
        over = excess > 1 + 1e-6  # not where a rounding of the product says so
        excess = jnp.log(jnp.where(over, excess, jnp.ones_like(excess)))
        return mean.astype(share.dtype) + self.beta * excess
