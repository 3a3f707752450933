"""The round of one tier: its clients train slices of one shape."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fad


def tier_round(
    params: Any,
    part: fad.AtClients,
    keys_of: Callable[..., Any],
    work: Callable[..., Any],
    *,
    head: str = "",
    own: tuple[fad.AtClients, ...] = (),
    more: Callable[..., Any] | None = None,
) -> fad.Coverage:
    """Return the mean update and loss of the clients of one tier.

    The server knows all keys, but not those of a last layer ``head`` of own labels; and
    none where they are made of what is the clients' own.

    Args:
        params: The whole model.
        part: The clients' batches.
        keys_of: ``keys_of(batches, *own) -> keys``, which slices a client has.
        work: ``work(slices, keys, batches) -> (delta, loss, weight)``.
        head: The last layer, if clients have its columns of their own labels alone.
        own: What else is at the clients.
        more: ``more(params, keys, delta, batches, *own)``, what each client adds to the
            update of the whole model; its mean is over all of the clients.
    """

    def split(tree):
        rest = {name: v for name, v in tree.items() if name != head} if head else tree
        return (rest, {head: tree[head]}) if head else (rest,)

    def join(parts):
        return {**parts[0], **parts[1]} if head else parts[0]

    def at_client(slices, keys, batches):
        delta, loss, weight = work(join(slices), join(keys), batches)
        return split(delta), loss, weight

    @fad.program
    def round(part, *own):
        keys = fad.map(lambda batches, *own: split(keys_of(batches, *own)), part, *own)
        levels = list(zip(split(params), keys, (not own, False), strict=False))
        slices = [fad.select(p, k, public=public) for p, k, public in levels]
        delta, losses, weights = fad.map(at_client, slices, keys, part)
        means = [
            fad.coverage_mean(
                d, k, jax.tree.map(jnp.zeros_like, p), weights=weights, public=public
            )
            for d, (p, k, public) in zip(delta, levels, strict=True)
        ]
        mean, weight = (join(both) for both in zip(*means, strict=True))
        loss, total = fad.weighted_mean(losses, weights), fad.sum(weights)
        if more is None:
            return fad.Coverage((mean, loss), (weight, total))

        def added(keys, delta, *rest, more=more):
            return more(params, join(keys), join(delta), *rest)

        dense = fad.weighted_mean(fad.map(added, keys, delta, part, *own), weights)
        of_all = jax.tree.map(lambda x: jnp.full(x.shape, total), dense)
        return fad.Coverage((mean, loss, dense), (weight, total, of_all))

    return round(part, *own)
