"""What clients compute for a solver, and how the server averages it."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fad.local import Batches, client_key, evaluate
from fad.primitives import map, weighted_mean
from fad.solvers._solver import Loss

Weighting = Literal["uniform", "examples"]
WEIGHTINGS = ("uniform", "examples")


class Client(NamedTuple):
    """One client's part in a round.

    Attributes:
        batches: Its batches, finite in the padding.
        key: Its own key, or None.
        weight: ``[]`` float32, its weight among the clients; 0 of an empty one.
        steps: ``[]`` int32, its local steps: the batches with real rows.
    """

    batches: Batches
    key: Any
    weight: jax.Array
    steps: jax.Array


def client(batches: Batches, key: Any, weighting: Weighting) -> Client:
    """Return one client's part in a round."""
    mask = batches.mask
    rows = jnp.any(mask) if weighting == "uniform" else jnp.sum(mask)
    return Client(
        batches._replace(examples=_finite_padding(batches.examples, mask)),
        None if key is None else client_key(key, batches.client),
        rows.astype(jnp.float32),
        jnp.sum(jnp.any(mask, axis=1), dtype=jnp.int32),
    )


def repeat(batches: Batches, passes: int) -> Batches:
    """Return one client's batches, so often one after the other."""
    if passes == 1:
        return batches
    return batches._replace(
        examples=jax.tree.map(lambda x: _again(x, passes), batches.examples),
        mask=_again(batches.mask, passes),
    )


def _again(x: jax.Array, passes: int) -> jax.Array:
    return jnp.concatenate([x] * passes)


def _finite_padding(examples: Any, mask: jax.Array) -> Any:
    """Return the examples with 0 for what is not finite in padded rows."""

    def clean(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        real = jnp.expand_dims(mask, range(mask.ndim, x.ndim))
        return jnp.where(real | jnp.isfinite(x), x, jnp.zeros_like(x))

    return jax.tree.map(clean, examples)


def gradient(loss: Loss, y: Any, batches: Batches, key: Any) -> Any:
    """Return the gradient at y of the mean loss of one client's real rows."""
    return jax.grad(lambda p: evaluate(p, batches, loss=loss, key=key)[0])(y)


def mean_gradient(
    loss: Loss, y: Any, cohort: Any, key: Any, weighting: Weighting
) -> Any:
    """Return the mean over clients of their full gradients at y: one round."""

    def full_gradient(batches):
        own = client(batches, key, weighting)
        return gradient(loss, y, own.batches, own.key), own.weight

    return weighted_mean(*map(full_gradient, cohort))


def sgd(lr: Any, *, divisor: Any = 1) -> optax.GradientTransformation:
    """Return SGD of step ``lr / divisor``, in the dtype of each gradient.

    ``optax.sgd`` multiplies dtypes as they are: a float32 step would widen bfloat16.
    """

    def update(g, _):
        return -jnp.asarray(lr, g.dtype) / jnp.asarray(divisor, g.dtype) * g

    return optax.stateless_with_tree_map(update)


def tilt(losses: jax.Array, slope: Any, p: Any) -> jax.Array:
    """Add ``<slope, p>`` to every row, which adds ``slope`` to the mean's gradient."""
    terms = jax.tree.map(lambda s, v: jnp.sum(s * v).astype(losses.dtype), slope, p)
    return losses + jax.tree.reduce(jnp.add, terms, jnp.zeros((), losses.dtype))


def move(y: Any, direction: Any, lr: Any) -> Any:
    """Return ``y + lr * direction`` in the dtypes of y."""
    return jax.tree.map(lambda p, d: p + jnp.asarray(lr, p.dtype) * d, y, direction)
