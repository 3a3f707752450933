"""A round of FedAvg in which clients hold and send some of the model's weights.

The places of a cohort are cut into tiers, one for each density. With ``M_i`` the mask
with which client i begins, ``N_i`` the one with which it ends and ``w_i`` its weight,

    each client i:  z_i <- local steps from M_i x;    d_i = N_i (z_i - M_i x)
    server, for each coordinate j that somebody sends:
                    D_j = sum_{i: N_ij = 1} w_i d_ij / sum_{i: N_ij = 1} w_i
                    x <- x + eta D

What nobody sends stays. Down go the kept weights and the mask, a bit for each weight;
up go the weights, with their places in int32 where the server does not know the mask.
Of a density of 1 both go whole. Biases and norms are always sent. With ``labels`` a
client counts in the means of the last layer's columns of its own labels alone
(``_sparse_labels.py``).

Clients compute with zeros in whole arrays: ``fad.plan`` counts a dense model's work, of
which sparse kernels would do the density's share.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad
from algorithms._server_step import Weighting, weigh
from algorithms._sparse_labels import Labels, Loss
from algorithms._sparse_masks import join, split
from fad import submodels
from fad.primitives import put, take


class Sent(NamedTuple):
    """What one client makes: an update, its mask, more to average."""

    delta: Any
    mask: jax.Array
    loss: jax.Array
    weight: jax.Array
    more: Any = ()


def sent(local: Any, mask: Any, weighting: Weighting, more: Any = ()) -> Sent:
    """Return what a client sends of its local training."""
    weight, _ = weigh(local.delta, local.num_examples, weighting, "refuse")
    return Sent(local.delta, mask, local.loss, weight, more)


class Tier(NamedTuple):
    """The clients of one density.

    Attributes:
        work: ``work(params, mask, batches, loss) -> Sent``, from the params it holds.
        mask: ``[n]`` bool, with which they begin.
        down: How many weights it keeps.
        up: How many weights a client sends.
        told: Whether clients choose these.
    """

    work: Callable[[Any, jax.Array, fad.local.Batches, Loss], Sent]
    mask: jax.Array
    down: int
    up: int
    told: bool = False


class Mean(NamedTuple):
    """The means of a round; of the weights that came the metrics have the share."""

    delta: Any
    metrics: dict[str, jax.Array]
    more: Any


def sparse_round(
    params: Any, cohort: fad.AtClients, tiers: Sequence[Tier], labels: Labels
) -> Mean:
    """Return the means of a round's updates over the clients that send each weight."""
    parts = submodels.tiers(cohort, len(tiers))
    found = [_round(params, *each, labels) for each in zip(parts, tiers, strict=True)]
    (vector, rest, loss, more), weight = submodels.merged(found)
    covered = jnp.mean(weight[0] > 0, dtype=jnp.float32)
    metrics = {"train_loss": loss, "covered": covered}
    return Mean(join(params, vector, rest), metrics, more)


def _round(
    params: Any, part: fad.AtClients, tier: Tier, labels: Labels
) -> fad.Coverage:
    vector, rest = split(params)
    size, listed = vector.size, tier.told and tier.up < vector.size

    def unpacked(bits):
        mask = jnp.unpackbits(bits, count=size).astype(bool)
        return mask, _places(mask, tier.down)

    def at_client(held, batches, *known):
        mask, keys = known or (jnp.ones(size, bool), jnp.arange(size))
        if known:
            held = put(held, keys, shape=(size,), axes=(0,))
        loss, own = labels.at_client(params, batches)
        sent = tier.work(join(params, held, rest), mask, batches, loss)
        delta, mask = labels.only(sent.delta, sent.mask, own)
        delta, others = split(delta)
        keys = _places(mask, tier.up) if listed else keys
        if tier.up < size:
            delta = take(delta, keys, axes=(0,))
        return (delta, others, sent.loss, sent.more, own), sent.weight, keys

    @fad.program
    def round(part):
        known, keys = (), None
        if tier.down < size:
            known = fad.map(unpacked, fad.broadcast(jnp.packbits(tier.mask)))
            _, keys = known
        held = fad.select(vector, keys, public=True)
        sent, weights, keys = fad.map(at_client, held, part, *known)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), sent)
        zeros = (jnp.zeros_like(vector), *zeros.unsafe_gather()[1:])
        keys = (keys if tier.up < size else None, None, None, None, None)
        public = not tier.told
        found = fad.coverage_mean(sent, keys, zeros, weights=weights, public=public)
        return labels.averaged(params, found, listed=listed)

    return round(part)


def _places(mask: jax.Array, count: int) -> jax.Array:
    """Return ``jnp.nonzero``, which ``fad.map`` cannot lower in jax 0.12."""
    at = jnp.where(mask, jnp.cumsum(mask, dtype=jnp.int32) - 1, count)
    index = jnp.arange(mask.size, dtype=jnp.int32)
    return jnp.full(count, -1, jnp.int32).at[at].set(index, mode="drop")
