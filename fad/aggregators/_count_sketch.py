"""FetchSGD: clients send a small sketch, momentum and error live in the sketch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad.aggregators._aggregator import Aggregator
from fad.aggregators._checks import check_count, check_share, share
from fad.aggregators._vector import Coded, at_least_single, like, ravel, unravel

PyTree = Any


class Sketches(NamedTuple):
    """The server's state, sketches ``[rows, columns]``."""

    momentum: jax.Array
    error: jax.Array


def count_sketch(
    rows: int, columns: int, *, k: int | float, momentum: Any = 0.0, seed: int = 0
) -> Aggregator:
    """Make FetchSGD's aggregator: a sketch goes up, and k coordinates come down.

    A coordinate j of the tree as one vector has in each row a random cell ``h_r(j)``
    and a random sign ``s_r(j)``; the sketch ``S(v)[r, c]`` is the sum of ``s_r(j) v_j``
    over the coordinates of the cell. In a round, with the clients' mean sketch::

        momentum = rho momentum + mean_i S(update_i)
        error = error + momentum
        step = the k largest of  median_r s_r(j) error[r, h_r(j)],  zero elsewhere
        error = error - S(step)
        momentum = 0 in the cells that S(step) fills

    The sketch is linear: ``rows * columns`` numbers (in float32 at least) per client in
    a plain sum, which ``fad.check`` passes and a secure sum serves. Clients keep
    nothing. The derivative is that of the medians' middle cells and of the coordinates
    that are chosen, with both choices held (almost everywhere the exact one).

    Args:
        rows: Independent estimates of a coordinate; 5 in the paper.
        columns: Cells of a row.
        k: Coordinates of a step, an int, or their share of all, a float in (0, 1]:
            rounded and at least one.
        momentum: rho, a number or ``[]``.
        seed: Of cells and signs, which are made anew in each round and not kept.

    Returns:
        The aggregator; its state is two sketches.

    Raises:
        ConfigError: ``rows``, ``columns`` or ``k`` is no such number; FadError in a
            round if k is above the number of coordinates.

    Example:
        >>> sketch = count_sketch(5, 50, k=1)
        >>> update = jnp.array([0.1, -4.0, 0.2])
        >>> state = sketch.init(update)
        >>> message, _ = sketch.client((), state, (), update, None)
        >>> step, state = sketch.server((), state, message, update, None)
        >>> step.tolist()
        [0.0, -4.0, 0.0]

    References:
        D. Rothchild et al., FetchSGD: Communication-efficient federated learning with
        sketching, ICML 2020, algorithm 1, with the momentum zeroed as in the authors'
        code (which zeroes the cells of the error, too, in the place of taking S(step)
        away). The step size is in the updates.
    """
    call = "fad.aggregators.count_sketch"
    check_count(f"{call}(rows)", "rows", rows)
    check_count(f"{call}(columns)", "columns", columns)
    call = f"{call}(k={k!r})"
    check_share(call, k)

    def client(theta, state, memory, update, key):
        del theta, state, key
        vector = at_least_single(ravel(update))
        hashes = _hashes(seed, rows, columns, vector.size)
        return Coded(_sketch(vector, hashes, columns), like(update)), memory

    def server(theta, state, mean, params, key):
        del theta, params, key
        d, sketch = mean.like.size, mean.code
        hashes = _hashes(seed, rows, columns, d)
        velocity = jnp.asarray(momentum).astype(sketch.dtype) * state.momentum + sketch
        error = state.error + velocity
        step = _largest(_estimate(error, hashes), share(call, k, d))
        hit = _sketch(step, hashes, columns)
        velocity = jnp.where(hit != 0, 0, velocity)
        return unravel(step, mean.like), Sketches(velocity, error - hit)

    def init(params: PyTree) -> Sketches:
        dtype = at_least_single(ravel(params)).dtype
        return Sketches(*[jnp.zeros((rows, columns), dtype)] * 2)

    return Aggregator(init=init, client=client, server=server)


def _hashes(
    seed: int, rows: int, columns: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """Return each coordinate's cells and signs: ``int32[rows, d], int8[rows, d]``."""
    cells, signs = jax.random.split(jax.random.key(seed))
    shape = (rows, size)
    return (
        jax.random.randint(cells, shape, 0, columns, jnp.int32),
        jax.random.rademacher(signs, shape, jnp.int8),
    )


def _sketch(vector: jax.Array, hashes: Any, columns: int) -> jax.Array:
    """Return the sketch: ``[d] -> [rows, columns]``."""
    cells, signs = hashes
    rows = jnp.arange(len(cells))[:, None]
    zeros = jnp.zeros((len(cells), columns), vector.dtype)
    return zeros.at[rows, cells].add(signs.astype(vector.dtype) * vector[None])


def _estimate(sketch: jax.Array, hashes: Any) -> jax.Array:
    """Return the median over the rows of what each says: ``[rows, columns] -> [d]``."""
    cells, signs = hashes
    each = jnp.take_along_axis(sketch, cells, axis=1) * signs.astype(sketch.dtype)
    return jnp.median(each, axis=0)


def _largest(vector: jax.Array, k: int) -> jax.Array:
    """Return the vector with zeros in the place of all but the k largest."""
    _, places = jax.lax.top_k(jax.lax.stop_gradient(jnp.abs(vector)), k)
    zeros = jnp.zeros_like(vector)
    return zeros.at[places].set(vector[places], unique_indices=True)
