"""Personalisation: adapt a model at a client, and see what the client gains."""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fad._errors import FadError, describe
from fad.local._batches import Batches
from fad.local._train import Loss, evaluate, train


class Personalized(NamedTuple):
    """What adapting a model does to one client.

    Attributes:
        before: The means over the client's query rows, by metric, as it was sent.
        after: The same after the client adapted it.
        num_examples: ``[]`` float32, the query rows. Of a client with none the metrics
            are 0 and say nothing: leave it out.
    """

    before: dict[str, jax.Array]
    after: dict[str, jax.Array]
    num_examples: jax.Array


class Spread(NamedTuple):
    """How a metric is spread over clients, each of which counts the same.

    Attributes:
        mean: The mean over clients.
        sd: The standard deviation over clients (of the population).
        worst: The mean over the clients that fare worst.
        num_clients: The clients counted.
    """

    mean: float
    sd: float
    worst: float
    num_clients: int


def support_query(batches: Batches, *, every: int = 2) -> tuple[Batches, Batches]:
    """Split a client's rows into those to adapt on and those to judge by.

    Of the real rows, in their order over all batches, each ``every``-th is query and
    the others are support. Both parts have the shapes of the whole and differ in their
    masks alone. A client of fewer than ``every`` rows has no query, one of none neither
    part. Where the batches go through the examples several times, an example may be
    support in one pass and query in another.

    Args:
        batches: One client's batches.
        every: How many rows a query row stands for; 2 gives halves.

    Returns:
        The support and the query.

    Raises:
        FadError: If every is not an integer above 1.

    Example:
        >>> mask = jnp.array([[True, True, True, False], [True, True, False, False]])
        >>> support, query = support_query(Batches(mask, mask, jnp.int32(0)))
        >>> support.mask.astype(int).tolist()
        [[1, 0, 1, 0], [0, 1, 0, 0]]
        >>> query.mask.astype(int).tolist()
        [[0, 1, 0, 0], [1, 0, 0, 0]]
    """
    every = _whole("support_query", "every", every, 2)
    mask = batches.mask
    rank = jnp.cumsum(mask.reshape(-1)).reshape(mask.shape)
    judged = rank % every == 0
    return batches._replace(mask=mask & ~judged), batches._replace(mask=mask & judged)


def take_steps(batches: Batches, steps: int) -> Batches:
    """Return the batches of an exact number of local steps.

    Batches of padding alone are left out, and where the others are fewer they come
    again from the first: clients of all sizes take the same number of steps. An empty
    client has padding alone.

    Args:
        batches: One client's batches, ``[m, batch, *]``.
        steps: The number of steps.

    Returns:
        Batches ``[steps, batch, *]``.

    Raises:
        FadError: If steps is not a positive integer.

    Example:
        >>> mask = jnp.array([[True, True], [False, False], [True, False]])
        >>> taken = take_steps(Batches(jnp.arange(3), mask, jnp.int32(0)), 4)
        >>> taken.examples.tolist()
        [0, 2, 0, 2]
    """
    steps = _whole("take_steps", "steps", steps, 1)
    real = jnp.any(batches.mask, axis=1)
    first = jnp.argsort(~real, stable=True)
    taken = first[jnp.arange(steps) % jnp.maximum(jnp.sum(real), 1)]
    examples = jax.tree.map(lambda x: x[taken], batches.examples)
    return Batches(examples, batches.mask[taken], batches.client)


def personalize(
    params: Any,
    support: Batches,
    query: Batches,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    metrics: Callable[[Any, Any], dict[str, jax.Array]],
    steps: int | None = None,
    key: jax.Array | None = None,
) -> Personalized:
    """Adapt a model to one client, and judge it there before and after.

    Query rows must be none of the support's: ``fad.data.Federated.split`` holds some
    out at every client. A client without support keeps the model as it was sent.

    Args:
        params: A pytree of arrays, the model that the client was sent.
        support: The client's batches to adapt on, one step per batch.
        query: The client's batches to judge by.
        loss: ``loss(params, examples) -> [batch]``; with ``key`` a third argument.
        optimizer: What adapts; it starts afresh.
        metrics: ``metrics(params, examples) -> {name: [batch]}``, as of a
            ``fad.data.Task``.
        steps: The number of steps, as ``take_steps`` has it; None for one per batch.
        key: This client's key, for a random loss.

    Returns:
        The metrics before and after.

    Raises:
        FadError: If steps is not a positive integer, or as ``fad.local.train``.

    Example:
        >>> batches = Batches(jnp.array([[4.0]]), jnp.array([[True]]), jnp.int32(0))
        >>> square = lambda w, x: (w - x) ** 2
        >>> personalize(
        ...     jnp.array(0.0),
        ...     batches,
        ...     batches,
        ...     loss=square,
        ...     optimizer=optax.sgd(0.25),
        ...     metrics=lambda w, x: {"loss": square(w, x)},
        ... ).after
        {'loss': Array(4., dtype=float32)}

    References:
        Wang et al., Federated Evaluation of On-device Personalization, 2019
        (https://arxiv.org/abs/1910.10252).
    """
    if steps is not None:
        support = take_steps(support, steps)
    adapted = train(params, support, loss=loss, optimizer=optimizer, key=key).params
    row = jax.tree.map(lambda x: x[0], query.examples)
    names = jax.eval_shape(metrics, params, row)

    def judge(p: Any) -> dict[str, jax.Array]:
        def mean(name: str) -> jax.Array:
            return evaluate(p, query, loss=lambda p, x: metrics(p, x)[name])[0]

        return {name: mean(name) for name in names}

    number = jnp.sum(query.mask, dtype=jnp.float32)
    return Personalized(judge(params), judge(adapted), number)


def spread(
    values: Any,
    num_examples: Any,
    *,
    worst: float = 0.1,
    lower_is_better: bool = False,
) -> Spread:
    """Summarise a metric over the clients that have examples.

    ``[n], [n] ->`` mean, standard deviation, and the mean of the worst. It needs every
    client's value: it is for simulations, after ``unsafe_gather``.

    Args:
        values: One number per client.
        num_examples: What each was measured on; a client with none is left out.
        worst: The share of clients that fare worst, at least one.
        lower_is_better: Whether the metric is a loss.

    Returns:
        The summary; NaN where a value is NaN.

    Raises:
        FadError: If the shapes differ, no client has examples, or worst is no share.

    Example:
        >>> spread([0.5, 0.0, 1.0], [2, 0, 1])
        Spread(mean=0.75, sd=0.25, worst=0.5, num_clients=2)

    References:
        Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, which
        reports the worst 10 % and the variance over clients.
    """
    x, n = np.asarray(values, np.float64), np.asarray(num_examples)
    if x.ndim != 1 or x.shape != n.shape:
        raise FadError(
            "fad.local.spread(values, num_examples): expected one number per client "
            f"each, [n]; got {describe(x)} and {describe(n)}."
        )
    if not 0 < worst <= 1:
        raise FadError(f"fad.local.spread: worst must be in (0, 1], got {worst!r}.")
    x = np.sort(x[n > 0])
    if not len(x):
        raise FadError(
            "fad.local.spread: num_examples is 0 at every client; expected a client "
            "with examples. Hold some out at the clients: fad.data.Federated.split."
        )
    few = math.ceil(worst * len(x))
    # NaN is sorted last, which must not make it the best.
    low = x[-few:] if lower_is_better or np.isnan(x).any() else x[:few]
    return Spread(float(x.mean()), float(x.std()), float(low.mean()), len(x))


def _whole(call: str, name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise FadError(
            f"fad.local.{call}: {name} must be an integer of at least {least}, got "
            f"{value!r}."
        )
    return number
