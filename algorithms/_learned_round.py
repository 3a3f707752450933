"""One round of FedAvg as a function of all that the weights' parameters influence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._tangents import fade
from algorithms._weight_functions import (
    Features,
    WeightFunction,
    features_of,
    moments_after,
    weigh,
)
from algorithms.fedavg import Weighting, average


class Sent(NamedTuple):
    """What one client computes in a round; only sums of it are seen."""

    delta: Any
    weight: jax.Array
    loss: jax.Array  # at the model it was sent
    examples: jax.Array  # 0 if the client is left out
    features: Features
    bad: jax.Array  # left out, since its weight is none


@dataclass(frozen=True, eq=False)
class Round:
    """``round(model, phi, cohort, key) -> (objective, model), metrics``.

    The model is ``(params, server optimizer's state, moments of the features)``.
    """

    loss: Callable[..., jax.Array]
    function: WeightFunction
    server: optax.GradientTransformation
    client: optax.GradientTransformation
    server_lr: float
    validation: Any
    weighting: Weighting
    random_loss: bool

    def __call__(self, model, phi, cohort, key, *, memory=1.0):
        """Train, average by phi's weights, and judge without a further round."""
        sent = self.work(model, phi, cohort, key, memory)
        delta, train_loss = (
            fad.weighted_mean(sent.delta, sent.weight),
            average(sent.loss, sent.examples, self.weighting),
        )
        faded = fade(model, memory)
        params, server = self._moved(faded, delta)
        new = params, server, self._moments(faded, sent)
        objective = train_loss
        if self.validation is not None:
            objective = self._validation_loss(params, key)
        return (objective, new), _metrics(sent, train_loss)

    def judged(self, model, phi, cohort, key):
        """Let two random halves of the cohort judge each other's model."""
        sent = self.work(model, phi, cohort, key, 1.0)
        half = fad.map(lambda b: _half(key, b.client), cohort)

        def halves(own, s):
            mine = jax.nn.one_hot(own, 2, dtype=s.weight.dtype) * s.weight
            both = jax.tree.map(
                lambda d: jnp.stack([mine[i].astype(d.dtype) * d for i in (0, 1)]),
                s.delta,
            )
            return both, mine

        totals, weights = fad.sum(fad.map(halves, half, sent))
        delta = _over(jax.tree.map(lambda t: t.sum(0), totals), weights.sum())
        parts = [jax.tree.map(lambda t, i=i: t[i], totals) for i in (0, 1)]
        models = [self._moved(model, _over(parts[i], weights[i]))[0] for i in (0, 1)]

        def judge(own, s, batches):
            other = jax.tree.map(lambda a, b: jnp.where(own == 0, b, a), *models)
            value = self._mean_loss(other, batches, key)[0]
            return jnp.where(s.examples > 0, value, 0)

        losses = fad.map(judge, half, sent, cohort)
        objective = average(losses, sent.examples, self.weighting)
        train_loss = average(sent.loss, sent.examples, self.weighting)
        params, server = self._moved(model, delta)
        new = params, server, self._moments(model, sent)
        return (objective, new), _metrics(sent, train_loss)

    def work(self, model, phi, cohort, key, memory):
        """Return each client's ``Sent``; what phi did before counts by ``memory``."""
        params, _, moments = model
        moments = fade(moments, memory)

        def client(x, batches):
            own = self._key(key, batches)
            before, examples = self._mean_loss(x, batches, key)
            local = fad.local.train(
                fade(x, memory),
                batches,
                loss=self.loss,
                optimizer=self.client,
                key=own,
            )
            after, _ = self._mean_loss(local.params, batches, key)
            z = features_of(local, fade(before, memory), after)
            weight, bad = weigh(self.function, phi, z, moments, examples)
            delta, before, examples = jax.tree.map(
                lambda v: jnp.where(bad, jnp.zeros_like(v), v),
                (local.delta, before, examples),
            )
            return Sent(delta, weight, before, examples, z, bad)

        return fad.map(client, fad.broadcast(params), cohort)

    def _key(self, key, batches):
        if not self.random_loss:
            return None
        return fad.local.client_key(key, batches.client)

    def _mean_loss(self, params, batches, key):
        own = self._key(key, batches)
        return fad.local.evaluate(params, batches, loss=self.loss, key=own)

    def _validation_loss(self, params, key):
        extra = (key,) if self.random_loss else ()
        return self.loss(params, self.validation, *extra).mean()

    def _moved(self, model, delta):
        """Return the params and the optimizer's state after the server's step."""
        params, memories, _ = model
        gradient = jax.tree.map(lambda d: -d, delta)
        direction, memories = self.server.update(gradient, memories, params)
        lr = self.server_lr
        return jax.tree.map(lambda p, d: p + lr * d, params, direction), memories

    def _moments(self, model, sent):
        def seen(s):
            there = s.examples > 0
            z = jax.tree.map(
                lambda v: jnp.where(there, v, jnp.zeros_like(v)), s.features
            )
            return z, there.astype(s.loss.dtype)

        features, counts = fad.map(seen, sent)
        return moments_after(model[2], features, counts)


def _half(key, client):
    own = fad.local.client_key(jax.random.fold_in(key, 1), client)
    return jax.random.bernoulli(own).astype(jnp.int32)


def _over(total, weight):
    safe = jnp.where(weight == 0, jnp.ones_like(weight), weight)
    return jax.tree.map(lambda t: t / safe.astype(t.dtype), total)


def _metrics(sent, train_loss):
    """Return what the run shows of the cohort: sums alone."""

    def shown(s):
        z = jax.tree.map(lambda v: jnp.where(s.bad, v, jnp.zeros_like(v)), s.features)
        return z, s.bad.astype(jnp.float32), s.weight, s.weight**2

    z, bad, weight, square = fad.sum(fad.map(shown, sent))
    effective = weight**2 / jnp.where(square == 0, jnp.ones_like(square), square)
    means = _over(z, bad)
    return {
        "train_loss": train_loss,
        "effective_clients": effective,
        "bad_clients": bad,
        **{f"bad_{name}": x for name, x in zip(Features._fields, means, strict=True)},
    }
