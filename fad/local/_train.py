"""Local training: a few optimizer steps over one client's masked batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fad._errors import FadError, describe, path_str
from fad.local._batches import Batches

Loss = Callable[..., jax.Array]


class LocalResult(NamedTuple):
    """What one client's local training gives.

    Attributes:
        params: The params after the last step.
        delta: ``params`` minus the params it started from; zero for an empty client.
        loss: ``[]``, mean loss of the examples as they were seen, each before its step.
        num_examples: ``[]`` float32, real rows seen, repeats over epochs included.
        num_steps: ``[]`` int32, optimizer steps taken.
    """

    params: Any
    delta: Any
    loss: jax.Array
    num_examples: jax.Array
    num_steps: jax.Array


def train(
    params: Any,
    batches: Batches,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    key: jax.Array | None = None,
    unroll: int | bool = 1,
) -> LocalResult:
    """Take one optimizer step per batch that has real rows.

    Each step minimises the mean of the real rows' losses; a batch of padding alone
    leaves params and optimizer state as they were, and where clients run one by one (no
    ``vmap``) its gradient is not computed. The optimizer starts afresh. The function is
    pure and differentiable in ``params``, in the examples, and in whatever ``loss`` and
    ``optimizer`` close over (a learned client step, for one).

    Args:
        params: A pytree of arrays.
        batches: One client's batches.
        loss: ``loss(params, examples) -> [batch]``, one loss per row; with ``key`` it
            is ``loss(params, examples, key)``, a fresh key each step. It must be finite
            on padded rows.
        optimizer: Any optax gradient transformation.
        key: This client's key (``fad.local.client_key``), for a random loss.
        unroll: Steps unrolled per iteration of the loop, as in ``jax.lax.scan``; True
            unrolls all. It pays where XLA is slow inside loops (a convolution's
            gradient on CPU is, some 10 times: see ``fad.local.layers``), if no loop is
            around ``train`` either. Compiling takes longer by as much.

    Returns:
        A ``LocalResult``.

    Raises:
        FadError: If the loss does not give one number per row, or a parameter is no
            real array.

    Example:
        >>> import fad
        >>> batches = fad.local.Batches(
        ...     {"x": jnp.array([[1.0, 3.0]])}, jnp.array([[True, False]]), jnp.int32(0)
        ... )
        >>> result = fad.local.train(
        ...     jnp.array(0.0),
        ...     batches,
        ...     optimizer=optax.sgd(0.5),
        ...     loss=lambda w, examples: (w - examples["x"]) ** 2,
        ... )
        >>> float(result.delta), float(result.num_examples)
        (1.0, 1.0)
    """

    def objective(p, examples, mask, step_key):
        total, count = _masked_sum(_losses(loss, p, examples, mask, step_key), mask)
        return _mean(total, count), total

    def step(carry, inputs):
        index, examples, mask = inputs
        keep = jnp.any(mask)

        def compute(p):
            step_key = None if key is None else jax.random.fold_in(key, index)
            return jax.grad(objective, has_aux=True)(p, examples, mask, step_key)

        def skip(p):
            # No step uses this gradient. Zeros would be kept for the derivative.
            _, total = jax.eval_shape(compute, p)
            return p, jnp.zeros(total.shape, total.dtype)

        grads, total = jax.lax.cond(_computes(keep), compute, skip, carry[0])
        return _update(optimizer, carry, grads, keep), total

    _check_params(params)
    start = jax.tree.map(jnp.asarray, params)
    steps = jnp.arange(batches.mask.shape[0])
    (params, _), totals = jax.lax.scan(
        step,
        (start, optimizer.init(start)),
        (steps, batches.examples, batches.mask),
        unroll=unroll,
    )
    num_examples = jnp.sum(batches.mask, dtype=jnp.float32)
    return LocalResult(
        params=params,
        delta=jax.tree.map(jnp.subtract, params, start),
        loss=_mean(totals.sum(), num_examples),
        num_examples=num_examples,
        num_steps=jnp.sum(jnp.any(batches.mask, axis=1), dtype=jnp.int32),
    )


def evaluate(
    params: Any, batches: Batches, *, loss: Loss, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the mean of ``loss`` over a client's real rows, and their number.

    ``-> [], []``. An empty client gives ``(0, 0)``; average over clients with
    ``fad.weighted_mean(mean, number)``.

    Args:
        params: A pytree of arrays.
        batches: One client's batches.
        loss: ``loss(params, examples) -> [batch]``; with ``key`` a third argument.
        key: This client's key, for a random loss.

    Returns:
        The mean and the float32 number of real rows.

    Raises:
        FadError: If the loss does not give one number per row.

    Example:
        >>> import fad
        >>> batches = fad.local.Batches(
        ...     {"x": jnp.array([[1.0, 9.0]])}, jnp.array([[True, False]]), jnp.int32(0)
        ... )
        >>> mean, number = fad.local.evaluate(
        ...     2.0, batches, loss=lambda w, examples: w * examples["x"]
        ... )
        >>> float(mean), float(number)
        (2.0, 1.0)
    """
    mask = batches.mask.reshape(-1)
    examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches.examples)
    total, count = _masked_sum(_losses(loss, params, examples, mask, key), mask)
    return _mean(total, count), count


def _check_params(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise FadError(
                f"fad.local.train: {path_str('params', path)} is {describe(leaf)}; "
                "expected real numbers to train. Keep counters and options outside "
                "the params."
            )


def _losses(loss, params, examples, mask, key) -> jax.Array:
    losses = loss(params, examples) if key is None else loss(params, examples, key)
    if getattr(losses, "shape", None) != mask.shape:
        raise FadError(
            f"fad.local: loss(params, examples) gave {describe(losses)}; expected one "
            f"loss per row, [{mask.shape[0]}], so that padded rows can be masked. "
            "Average over features and outputs inside the loss, not over rows."
        )
    return losses


def _masked_sum(losses: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = jnp.sum(jnp.where(mask, losses, jnp.zeros_like(losses)))
    return total, jnp.sum(mask, dtype=jnp.float32)


def _mean(total: jax.Array, count: jax.Array) -> jax.Array:
    return total / jnp.maximum(count, 1).astype(total.dtype)


def _update(optimizer, carry, grads, keep):
    """Return params and optimizer state after the step, or as they were."""
    # A discarded step must have finite derivatives too: 0 is a pole of norms' ones.
    grads = jax.tree.map(lambda g: jnp.where(keep, g, jnp.ones_like(g)), grads)
    params, state = carry
    updates, state = optimizer.update(grads, state, params)
    new = optax.apply_updates(params, updates), state
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, carry)


@jax.custom_batching.custom_vmap
def _computes(keep: jax.Array) -> jax.Array:
    """Whether to compute a step's gradient: if it counts, and under vmap always.

    A branch taken client by client would under vmap be a selection from both branches,
    at the cost of both, with masks as large as the params kept for the derivative.
    """
    return keep


@_computes.def_vmap
def _(axis_size, in_batched, keep):
    del axis_size, in_batched, keep
    return jnp.array(True), False
