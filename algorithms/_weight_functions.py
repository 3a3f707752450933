"""Weight functions: from what a client may reveal inside a sum to its weight.

A function has parameters phi and is positive by its form where it can be. What it gives
that is negative or not finite counts as zero, and is reported with its features.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import fad

Kind = Literal["exponent", "loglinear", "network"]
_FAR = 5.0  # standard deviations; an outlier must not blow a weight up


class Features(NamedTuple):
    """What a weight may depend on, of one client in one round."""

    log_examples: jax.Array  # of max(n, 1)
    loss_before: jax.Array  # of its examples at the model it was sent
    loss_after: jax.Array  # of its examples at the model it trained
    update_norm: jax.Array


class WeightFunction(NamedTuple):
    """``weight(phi, features) -> []``, and ``init(key) -> phi``.

    With ``standardised`` the features come as deviations from their running mean, in
    running standard deviations.
    """

    init: Callable[[jax.Array], Any]
    weight: Callable[[Any, Features], jax.Array]
    standardised: bool = True


def weight_function(
    kind: Kind, *, exponent: float = 0.0, hidden: tuple[int, ...] = (8,)
) -> WeightFunction:
    """Return a weight function; all but the first start with equal weights.

    ``exponent``: ``n ** q``, from ``q = exponent``. ``loglinear``: ``exp(<a, z>)``, one
    number a feature. ``network``: a flax network of ``hidden`` tanh layers, softplus at
    its end.
    """
    match kind:
        case "exponent":
            return WeightFunction(
                lambda key: {"exponent": jnp.asarray(exponent, jnp.result_type(float))},
                lambda phi, z: jnp.exp(phi["exponent"] * z.log_examples),
                standardised=False,
            )
        case "loglinear":
            return WeightFunction(
                lambda key: {n: jnp.zeros(()) for n in Features._fields},
                lambda phi, z: jnp.exp(sum(phi[n] * getattr(z, n) for n in phi)),
            )
        case "network":
            return _network(hidden)


def _network(hidden: tuple[int, ...]) -> WeightFunction:
    from flax import linen as nn  # Here, for the other functions do not need Flax.

    zeros = nn.initializers.zeros
    layers = [part for n in hidden for part in (nn.Dense(n), nn.tanh)]
    net = nn.Sequential([*layers, nn.Dense(1, kernel_init=zeros), nn.softplus])
    return WeightFunction(
        lambda key: net.init(key, jnp.zeros(len(Features._fields))),
        lambda phi, z: net.apply(phi, jnp.stack(z))[0],
    )


class Moments(NamedTuple):
    """Running moments of the features: a client counts for less in every round."""

    clients: jax.Array
    mean: Features
    square: Features


def no_moments() -> Moments:
    """Return moments of nobody: mean 0 and deviation 1."""
    zero, one = jnp.zeros(()), jnp.ones(())
    return Moments(zero, *(Features(x, x, x, x) for x in (zero, one)))


def moments_after(moments: Moments, features: Any, counts: Any) -> Moments:
    """Join this round's features, each at its client, to the running moments."""
    both = fad.map(lambda z: (z, jax.tree.map(jnp.square, z)), features)
    mean, square = fad.weighted_mean(both, counts)
    new = fad.sum(counts)
    clients = 0.9 * moments.clients + new
    share = new / jnp.maximum(clients, 1e-6)

    def towards(old, seen):
        return old + share.astype(old.dtype) * (seen - old)

    old = moments.mean, moments.square
    return Moments(clients, *jax.tree.map(towards, old, (mean, square)))


def features_of(local: fad.local.LocalResult, before: Any, after: Any) -> Features:
    """Return the features of a client's local training, scalars of one dtype."""
    dtype = jnp.result_type(float)
    square = sum(jnp.sum(d**2).astype(dtype) for d in jax.tree.leaves(local.delta))
    still = square == 0  # The root has no derivative there.
    norm = jnp.where(still, 0, jnp.sqrt(jnp.where(still, 1, square)))
    n = jnp.maximum(local.num_examples, 1).astype(dtype)
    return Features(jnp.log(n), before.astype(dtype), after.astype(dtype), norm)


def weigh(
    function: WeightFunction, phi: Any, z: Features, moments: Moments, examples: Any
) -> tuple[jax.Array, jax.Array]:
    """Return a client's weight, and whether it had to be made zero.

    An empty client weighs nothing, which is as it should be.
    """
    known = jnp.isfinite(jnp.stack(z))
    clean = Features(*(jnp.where(k, x, 0) for k, x in zip(known, z, strict=True)))
    if function.standardised:
        clean = jax.tree.map(_standardised, clean, moments.mean, moments.square)
    weight = function.weight(phi, clean)
    good = known.all() & jnp.isfinite(weight) & (weight >= 0)
    there = examples > 0
    return jnp.where(good & there, weight, 0), ~good & there


def _standardised(x: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
    spread = jnp.sqrt(jnp.maximum(square - mean**2, 0) + 1e-6)
    return jnp.clip((x - mean) / spread, -_FAR, _FAR)


def refuse(metrics: dict[str, Any]) -> None:
    """Refuse a round in which a weight had to be made zero."""
    if not metrics["bad_clients"]:
        return
    means = ", ".join(f"{n} {metrics[f'bad_{n}']:.6g}" for n in Features._fields)
    raise fad.RunError(
        f"algorithms.learned_weights: the weight function gave "
        f"{metrics['bad_clients']:.0f} of the clients a weight that is negative or not "
        f"finite. The means of their features: {means}. Take a function that is "
        "positive, lower the clients' step if features are not finite, or let such "
        'clients weigh nothing: algorithm.on_bad = "clamp".'
    )


def scalars(phi: Any) -> dict[str, jax.Array]:
    """Return the parameters that are single numbers, by name."""
    named, _ = jax.tree_util.tree_flatten_with_path(phi)
    names = [jax.tree_util.keystr(p, simple=True, separator="_") for p, _ in named]
    values = {f"phi_{n}": x for n, (_, x) in zip(names, named, strict=True)}
    return {n: x for n, x in values.items() if x.ndim == 0}
