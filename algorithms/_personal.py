"""The loss after adaptation: what a learned initialisation is the minimum of.

A client's rows are split into support and query. With l the mean loss of either,

    w_0 = x,   w_(k+1) = w_k - a grad l_support(w_k),   F(x) = l_query(w_K)

(Finn et al., "Model-Agnostic Meta-Learning", ICML 2017; one step in Fallah et al.,
"Personalized Federated Learning with Theoretical Guarantees", NeurIPS 2020). It is one
more loss of the parameters and of a batch: whatever trains on losses trains on it. The
gradient of that program is

    exact         grad F = (I - a H(w_0)) ... (I - a H(w_(K-1))) grad l_query(w_K)
    first_order   the factors are left out: biased by a H, and K Hessians cheaper
    hessian_free  H v = [grad l(w + d v) - grad l(w - d v)] / 2d, with an error of d^2
                  on smooth losses: two gradients a factor

Between its two points a ReLU can switch; that jump counts as curvature, divided by d,
so a small d is no better there: the default is large.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.random import fold_in

import fad

Derivative = Literal["exact", "first_order", "hessian_free"]


class Marked(NamedTuple):
    """Rows of which some are to adapt on and some to judge by."""

    rows: Any  # [batch, *]
    support: Any  # [batch] bool
    query: Any  # [batch] bool


def mark(batches: fad.local.Batches, *, alone: bool) -> fad.local.Batches:
    """Mark every other row as query; the mask is that of the query rows.

    ``alone``: each batch is adapted to by itself, so that one without support counts
    for nothing. A client of one row, or of none, never counts.
    """
    support, query = fad.local.support_query(batches)
    judged = query.mask
    if alone:
        judged &= jnp.any(support.mask, axis=1, keepdims=True)
    marked = Marked(batches.examples, support.mask, judged)
    return batches._replace(examples=marked, mask=judged)


def adapted_loss(
    loss: Callable[..., jax.Array],
    *,
    lr: Any,
    steps: int = 1,
    derivative: Derivative = "exact",
    delta: float = 0.1,
) -> Callable[..., jax.Array]:
    """Turn a loss of rows into the loss of marked rows after adaptation.

    Args:
        loss: ``loss(params, examples) -> [batch]``, or with a key as third argument.
        lr: The inner step a; the exact loss differentiates in it too.
        steps: The number of inner steps K, each on all support rows.
        derivative: How the result differentiates in ``params``.
        delta: Half the distance of ``hessian_free``'s two points, over the norm of v.

    Returns:
        A function like ``loss``, of ``Marked`` examples.
    """

    def after(params: Any, marked: Marked, key: Any = None) -> jax.Array:
        def losses(p: Any, rows: Any, k: Any) -> jax.Array:
            return loss(p, rows) if key is None else loss(p, rows, fold_in(key, k))

        def slope(p: Any, mask: Any, k: Any) -> Any:
            return jax.grad(_mean(functools.partial(losses, k=k), marked.rows, mask))(p)

        def step(p: Any, k: jax.Array) -> tuple[Any, Any]:
            g = slope(p, marked.support, k)
            g = stop_gradient(g) if derivative == "first_order" else g
            return _move(p, g, -lr), p

        def back(v: Any, at: tuple[Any, jax.Array]) -> tuple[Any, None]:
            p, k = at
            ahead = slope(_move(p, v, delta), marked.support, k)
            behind = slope(_move(p, v, -delta), marked.support, k)
            product = jax.tree.map(lambda a, b: (a - b) / (2 * delta), ahead, behind)
            return _move(v, product, -lr), None

        counted = jnp.arange(steps)
        if derivative != "hessian_free":
            adapted, _ = jax.lax.scan(step, params, counted)
            return losses(adapted, marked.rows, steps)
        adapted, path = jax.lax.scan(step, stop_gradient(params), counted)
        v = slope(adapted, marked.query, steps)
        v, _ = jax.lax.scan(back, v, (path, counted), reverse=True)
        return _with_slope(losses(adapted, marked.rows, steps), v, params)

    return after


def _mean(losses: Callable, rows: Any, mask: jax.Array) -> Callable[[Any], jax.Array]:
    whole = jax.tree.map(lambda x: x[None], rows)
    batch = fad.local.Batches(whole, mask[None], None)
    return lambda p: fad.local.evaluate(p, batch, loss=losses)[0]


def _move(p: Any, v: Any, by: Any) -> Any:
    return jax.tree.map(lambda x, d: x + by * d, p, v)


def _with_slope(value: jax.Array, slope: Any, params: Any) -> jax.Array:
    """Return ``value``, with ``slope`` for its derivative in ``params``."""

    def rise(v: jax.Array, p: jax.Array) -> jax.Array:
        return jnp.sum(stop_gradient(v) * (p - stop_gradient(p)))

    total = jax.tree.reduce(jnp.add, jax.tree.map(rise, slope, params))
    return stop_gradient(value) + total.astype(value.dtype)
