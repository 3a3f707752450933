"""Sketch-LASSO: a sparse parameter from a few linear measurements of it.

With A the active set of the solution and s the signs on it,

    decode   theta = argmin 1/2 |S theta - omega|^2 + l1 |theta|_1
             S_A^T (S_A theta_A - omega) + l1 s = 0
    encode   v -> S_A (S_A^T S_A)^-1 v_A

Eq. 5 is the same: ``step S U (I - (I - step S^T S) U)^-1`` with U the diagonal of A. It
is ``+(d theta / d omega)^T``, so what a server adds; the paper's Algorithm 1 subtracts.

A Gaussian S costs a generation of ``p d`` numbers per product, so the solution is
sought on a *working set* W of columns, those with the largest ``|S^T residual|``, which
fit into memory; then a pass over all columns looks for others that violate ``|S^T
(omega - S theta)| <= l1``, which join in the place of columns that are not active.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.aggregators._vector import at_least_single
from fad.decoders._checks import check_step, check_tolerance
from fad.decoders._decoder import Decoder, relative
from fad.decoders._iterate import iterate
from fad.decoders._sketch import Dense, Sketch, of_data
from fad.decoders._solve import conjugate_gradients
from fad.estimators import implicit
from fad.estimators._checks import check_count
from fad.estimators._vectors import norm

_MARGIN = 1.05  # of a power iteration, which comes from below
_ROUGHLY = 300.0  # times the tolerance


class _Working(NamedTuple):
    """A working set: which columns, what was found there, and what is left to do.

    Roughly at first, since the set will change; exact once no column violates.
    """

    passes: jax.Array
    columns: jax.Array
    theta: jax.Array
    exact: jax.Array
    done: jax.Array


class _Search(NamedTuple):
    """How the solution is sought."""

    steps: int
    step: float | None
    tolerance: float
    capacity: int | None
    passes: int

    def checked(self, call: str, sketch: Any) -> "_Search":
        """Return the same, or refuse it."""
        check_count(call, "steps", self.steps, least=1)
        check_count(call, "passes", self.passes, least=1)
        check_tolerance(call, self.tolerance)
        if self.capacity is not None:
            check_count(call, "capacity", self.capacity, least=1)
        if self.step is not None:
            check_step(call, self.step, _known_largest(sketch))
        return self


def lasso(
    sketch: Sketch | Callable[[Any], Sketch],
    *,
    l1: Any,
    share: bool = False,
    steps: int = 1000,
    step: float | None = None,
    tolerance: float = 1e-6,
    capacity: int | None = None,
    passes: int = 10,
    terms: int | None = None,
) -> Decoder:
    """Make the decoder ``argmin_theta |S theta - omega|^2 / 2 + l1 |theta|_1``.

    Decode is FISTA with the step ``1 / lambda_max``; encode solves with ``S_A^T S_A``,
    A the active set, by conjugate gradients. The derivative is that of the solution, by
    omega, by l1, and by the entries of a ``dense`` sketch. Where omega and the sketch
    are the same for all clients, so is the work of decoding.

    At most p coordinates are active. As many as that leave the encoding
    ill-conditioned, and an l1 of ``max |S^T omega|`` or more leaves none: theta = 0.

    Args:
        sketch: S, or of the client's data: ``data -> S``.
        l1: The penalty, positive; a number or ``[]``, which may be traced.
        share: Whether l1 is a share of ``max |S^T omega|``, so that decoding is
            homogeneous, ``theta(c omega) = c theta(omega)``; differentiated too.
        steps: The most steps of FISTA, on each working set.
        step: Steps of ISTA of this length, below 2 over the largest eigenvalue of
            ``S^T S``, in the place of FISTA. Checked here, unless the sketch is traced
            or of the data: for one without a known eigenvalue by 20 products, which
            find it from below, by up to a few per cent.
        tolerance: The end of the steps: once one moves theta by at most ``tolerance
            |theta|``.
        capacity: The columns of a working set, ``[p, capacity]`` in memory; 2 p without
            it. Below the number of active ones there is no solution among them.
        passes: The most working sets.
        terms: The most products of an encoding; 2 p without it.

    Returns:
        The decoder, ``[p] -> [d]``. Its residual is the length of ``theta - soft(theta
        - S^T (S theta - omega), l1)``, soft the prox of the penalty, over that at zero.

    Raises:
        FadError: If an option is out of range or the sketch is none.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> sketch = fad.decoders.gaussian(20, 200, 0)
        >>> omega = 3 * sketch.columns(jnp.array([7]))[:, 0]
        >>> decoder = fad.decoders.lasso(sketch, l1=0.1, share=True)
        >>> theta, encode = jax.vjp(lambda x: decoder.decode(x, None), omega)
        >>> jnp.flatnonzero(theta).tolist(), round(float(theta[7]), 2)
        ([7], 2.7)

    References:
        Li and Huang, "Resolving the Tug-of-War: A Separation of Communication and
        Learning in Federated Learning", NeurIPS 2023, section 4.1 and appendix A.1;
        Johnson and Guestrin, "Blitz: a principled meta-algorithm for scaling sparse
        optimization", ICML 2015 (working sets).
    """
    call = "fad.decoders.lasso"
    made = of_data(call, sketch)
    search = _Search(steps, step, tolerance, capacity, passes).checked(call, sketch)
    if isinstance(l1, int | float) and not 0 < l1 < math.inf:
        raise FadError(
            f"{call}: expected l1 > 0 and finite, got {l1!r}. Without a penalty the "
            "solution is not unique: take fad.decoders.min_norm."
        )
    if terms is not None:
        terms = check_count(call, "terms", terms, least=1)

    def decode(omega: jax.Array, data: Any) -> jax.Array:
        s, x = made(data).ready(), at_least_single(omega)
        price, c = _price(s, x, l1, share)
        index, theta = _find(*jax.lax.stop_gradient((s, x, price, c)), search)
        part = s if index is None else Dense(s.columns(index).astype(x.dtype))
        solve = conjugate_gradients(terms or 2 * s.rows)
        active = theta != 0  # what else is encoded, is so to zero: no need to solve
        theta = implicit(_found, _condition, solve=solve)((x, price), (part, theta))
        theta = jnp.where(active, theta, 0)
        if index is not None:
            zeros = jnp.zeros(s.size, theta.dtype)
            theta = zeros.at[index].set(theta, unique_indices=True)
        return theta.astype(omega.dtype)

    def residual(omega: jax.Array, theta: jax.Array, data: Any) -> jax.Array:
        s = made(data).ready()
        x, y = at_least_single(omega), at_least_single(theta)
        price, c = _price(s, x, l1, share)
        way = y - _soft(y + s.transpose(x - s.apply(y)), price)
        return relative(norm(way), norm(_soft(c, price))).astype(omega.dtype)

    return Decoder(decode, residual)


def _known_largest(sketch: Any) -> float | None:
    """Return the largest eigenvalue of a sketch that is at hand."""
    if not isinstance(sketch, Sketch):
        return None
    try:
        with jax.ensure_compile_time_eval():
            return float(sketch.largest())
    except jax.errors.ConcretizationTypeError:
        return None


def _price(s: Sketch, omega: jax.Array, l1: Any, share: bool) -> tuple[Any, jax.Array]:
    """Return the penalty and, without a derivative, ``S^T omega``."""
    price, c = jnp.asarray(l1, omega.dtype), s.transpose(jax.lax.stop_gradient(omega))
    if share:
        column = s.columns(jnp.argmax(jnp.abs(c))[None])[:, 0].astype(omega.dtype)
        price = price * jnp.abs(jnp.dot(column, omega, precision="highest"))
    return price, jax.lax.stop_gradient(c)


def _find(
    s: Sketch, omega: jax.Array, price: jax.Array, c: jax.Array, search: _Search
) -> tuple[Any, jax.Array]:
    """Return the columns that may be active, None for all, and theta there."""
    if s.quick:
        start, tolerance = jnp.zeros_like(c), search.tolerance
        return None, _descend(s, omega, price, start, search, tolerance)
    width = min(search.capacity or 2 * s.rows, s.size)

    def one(now: _Working) -> _Working:
        part = Dense(s.columns(now.columns).astype(omega.dtype))
        tolerance = jnp.where(now.exact, 1.0, _ROUGHLY) * search.tolerance
        found = _descend(part, omega, price, now.theta[now.columns], search, tolerance)
        theta = jnp.zeros_like(c).at[now.columns].set(found, unique_indices=True)
        score = jnp.abs(s.transpose(omega - part.apply(found)))
        inside = jnp.zeros(s.size, bool).at[now.columns].set(True, unique_indices=True)
        violated = jnp.any(~inside & (score > price))
        kept = jnp.where(theta != 0, jnp.inf, jnp.nan_to_num(score))
        index = jax.lax.top_k(kept, width)[1]
        done = now.exact & ~violated
        return _Working(now.passes + 1, index, theta, now.exact | ~violated, done)

    first = jax.lax.top_k(jnp.abs(c), width)[1]
    no = jnp.array(False)
    start = _Working(jnp.int32(0), first, jnp.zeros_like(c), no, no)
    last = jax.lax.while_loop(
        lambda now: (now.passes < search.passes) & ~now.done, one, start
    )
    return last.columns, last.theta[last.columns]


def _descend(
    s: Sketch,
    omega: jax.Array,
    price: jax.Array,
    start: jax.Array,
    search: _Search,
    tolerance: Any,
) -> jax.Array:
    """Return the solution on the columns of s."""
    largest = s.largest().astype(omega.dtype)
    step = 1 / (_MARGIN * largest) if search.step is None else search.step

    def advance(theta: jax.Array) -> jax.Array:
        return _soft(theta + step * s.transpose(omega - s.apply(theta)), step * price)

    options = {"steps": search.steps, "tolerance": tolerance}
    return iterate(advance, start, accelerated=search.step is None, **options)


def _found(x: Any, data: tuple[Sketch, jax.Array]) -> jax.Array:
    """Return the solution, found before."""
    del x
    return data[1]


def _condition(x: Any, theta: jax.Array, data: tuple[Sketch, jax.Array]) -> jax.Array:
    """Return the gradient on the active set, theta elsewhere: a symmetric matrix."""
    (omega, price), (s, _) = x, data
    active, sign = jax.lax.stop_gradient((theta != 0, jnp.sign(theta)))
    inside = jnp.where(active, theta, 0)
    gradient = s.transpose(s.apply(inside) - omega) + price * sign
    return jnp.where(active, gradient, theta)


def _soft(x: jax.Array, by: jax.Array) -> jax.Array:
    """Move x towards zero, at most to it."""
    return jnp.sign(x) * jax.nn.relu(jnp.abs(x) - by)
