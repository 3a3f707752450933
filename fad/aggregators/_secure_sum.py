"""The arithmetic of a secure sum: integers modulo a power of two."""

import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from fad._errors import FadError, describe
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._checks import check_count, check_number
from fad.placement import AtClients, ambient_clients, clients_in_scope
from fad.primitives import map, sum

PyTree = Any

_CALL = "fad.aggregators.secure_sum"


def secure_sum(
    *, bound: float, clients: int, bits: int = 32, step: float | None = None
) -> Aggregator:
    """Sum in fixed point modulo ``2**bits``, as protocols of secure aggregation do.

    A client sends ``round(v / step) mod 2**bits`` for each coordinate ``v``, in the
    smallest unsigned type that holds it; these are summed modulo ``2**bits``, taken as
    signed, and multiplied by ``step``. A step is a power of two, so that dividing by it
    is exact: with ``n`` clients in the round

        |secure sum - exact sum| <= n step / 2

    for each coordinate, but for the rounding of the result to its dtype. What is summed
    are the messages times their weights, with ``dp_fedavg`` and ``gaussian_mean`` the
    messages. No sum leaves the range: ``clients (bound / step + 1/2) < 2**(bits - 1)``.

    Nothing is cut off: if a coordinate is not finite, or more than half a step above
    ``bound``, the client says so in one more integer, and the whole sum is NaN, which
    ends a run. Clip before it: a norm of ``bound`` at most bounds each coordinate. By
    rounding, a norm may grow by ``sqrt(d) step / 2``, which counts for privacy.

    The derivative is that of the float sum (straight-through); tangents and cotangents
    travel as floats, not in this arithmetic. ``fad.plan`` counts the integers, and
    ``fad.check`` passes. Only the arithmetic is simulated, without masks or keys; what
    is summed beside the messages, weights and reports, is an ordinary sum.

    Args:
        bound: On the magnitude of each coordinate that is summed.
        clients: The most clients of a round, empty ones among them.
        bits: Up to 32; the wire has 8, 16 or 32.
        step: A power of two; None for the finest that fits.

    Returns:
        The aggregator, a mean with this ``total``.

    Raises:
        FadError: The range or the step does not fit, with the numbers; in a round, if
            it has more clients, or a message is not of floats.

    Example:
        >>> import fad
        >>> secure = secure_sum(bound=1.0, clients=2, bits=8)
        >>> total = fad.program(secure.total)  # steps of 1/32
        >>> total(fad.AtClients(jnp.array([0.26, -1.0]))).item()
        -0.75
        >>> total(fad.AtClients(jnp.array([0.26, -1.1]))).item()
        nan

    References:
        Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine
        Learning, CCS 2017.
    """
    check_number(_CALL, "bound", bound)
    check_count(_CALL, "clients", clients)
    check_count(_CALL, "bits", bits, most=32)
    exact = _step(float(bound), clients, bits, step)
    limit = math.floor(Fraction(float(bound)) / Fraction(exact) + Fraction(1, 2))
    return Aggregator(
        total=functools.partial(_total, _Code(clients, bits, exact, limit))
    )


class _Code(NamedTuple):
    """How numbers become integers.

    Attributes:
        clients: The most of a round.
        bits: Of the modulus.
        step: What 1 stands for.
        limit: The largest integer of one client.
    """

    clients: int
    bits: int
    step: float
    limit: int

    @property
    def dtype(self) -> Any:
        """The smallest unsigned type that holds an integer."""
        return jnp.dtype(
            f"uint{8 if self.bits <= 8 else 16 if self.bits <= 16 else 32}"
        )


def _total(code: _Code, x: AtClients[PyTree]) -> PyTree:
    """Return the sum of a client value of floats."""
    n = ambient_clients(f"{_CALL}(...).total(x)")
    if n > code.clients:
        raise FadError(
            f"{_CALL}: the round has {n} clients; expected at most clients = "
            f"{code.clients}, for which the range was checked. Give clients={n}."
        )
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise FadError(
                f"{_CALL}: a message has a leaf {describe(leaf)}; expected floats. Sum "
                "integers with fad.sum."
            )
    return _straight_through(code, n, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _straight_through(code: _Code, n: int, x: AtClients[PyTree]) -> PyTree:
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(x)]
    with clients_in_scope(n):
        added, wrong = sum(map(functools.partial(_encoded, code), x))
    leaves, treedef = jax.tree.flatten(added)
    bad = _signed(code, wrong) > 0
    return treedef.unflatten(
        jnp.where(bad, jnp.nan, _signed(code, s).astype(_wide(d)) * code.step).astype(d)
        for s, d in zip(leaves, dtypes, strict=True)
    )


@functools.partial(_straight_through.defjvp, symbolic_zeros=True)
def _(code: _Code, n: int, primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    """JAX may ask for it after the program's end, so the clients come with it."""
    out = _straight_through(code, n, *primals)
    leaves, treedef = jax.tree.flatten(out)
    moves = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
    live = [i for i, t in enumerate(moves) if not isinstance(t, SymbolicZero)]
    with clients_in_scope(n):
        added = sum(AtClients.tree_unflatten(None, ([moves[i] for i in live],)))
    zeros = [jnp.zeros_like(x) for x in leaves]
    for i, t in zip(live, added, strict=True):
        zeros[i] = t
    return out, treedef.unflatten(zeros)


def _encoded(code: _Code, tree: PyTree) -> tuple[PyTree, jax.Array]:
    """Return a client's integers, and 1 if a number does not fit, else 0."""

    def one(x):
        scaled = x.astype(_wide(x.dtype)) / code.step
        small = jnp.abs(scaled) < 2.0**31 - 1
        whole = jnp.round(jnp.where(small, scaled, 0)).astype(jnp.int32)
        fits = small & (jnp.abs(whole) <= code.limit)
        return jnp.where(fits, whole, 0).astype(code.dtype), fits.all()

    leaves, treedef = jax.tree.flatten(tree)
    codes, fit = zip(*(one(x) for x in leaves), strict=True)
    return treedef.unflatten(codes), (~jnp.stack(fit).all()).astype(code.dtype)


def _signed(code: _Code, s: jax.Array) -> jax.Array:
    """Return a sum modulo ``2**bits`` as int32 of that many bits.

    Small unsigned types were summed in wider ones: what is above goes in the shifts.
    """
    rest = 32 - code.bits
    top = s.astype(jnp.uint32) << jnp.uint32(rest)
    return jax.lax.bitcast_convert_type(top, jnp.int32) >> jnp.int32(rest)


def _wide(dtype: Any) -> Any:
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def _step(bound: float, clients: int, bits: int, step: float | None) -> float:
    """Return the step, checked; the finest power of two if there is none.

    Raises:
        FadError: The sum could leave the range, or the step is no power of two.
    """
    room = Fraction(2 ** (bits - 1), clients) - Fraction(1, 2)  # for bound / step
    # The least power of two above bound / room.
    finest = 2.0 ** math.frexp(float(bound / room))[1] if room > 0 else math.inf
    if finest >= 2 * bound:
        raise FadError(
            f"{_CALL}: bits = {bits} are too few for the sum of clients = {clients}: "
            f"all numbers up to bound = {bound} would be 0. Give bits="
            f"{_bits(clients, 1)} or more."
        )
    if step is None:
        step = finest
    if not (isinstance(step, float | int) and math.frexp(step)[0] == 0.5):
        raise FadError(
            f"{_CALL}: expected step as a power of two, so that dividing by it is "
            f"exact, got {step!r}. The finest that fits is {finest!r}."
        )
    if step >= 2 * bound:
        raise FadError(
            f"{_CALL}: with step = {step} all numbers up to bound = {bound} would be 0;"
            f" expected less than {2 * bound}. The finest that fits is {finest}."
        )
    if not 2.0**-96 <= step <= 2.0**96:
        raise FadError(
            f"{_CALL}: with bound = {bound} the step is {step}; expected 2**-96 to "
            "2**96, within the range of float32. Scale the updates."
        )
    ratio = Fraction(bound) / Fraction(step)
    if ratio >= room:
        enough = _bits(clients, ratio)
        more = f"bits={enough}" if enough <= 32 else "fewer clients or a smaller bound"
        raise FadError(
            f"{_CALL}: the sum could leave its range: clients (bound / step + 1/2) = "
            f"{clients} ({bound} / {step} + 1/2) = {float(clients * (ratio + 0.5)):.6g}"
            f", expected below 2**(bits - 1) = {2 ** (bits - 1)}. The finest step that "
            f"fits {bits} bits is {finest}; for this step give {more}."
        )
    return float(step)


def _bits(clients: int, ratio: Any) -> int:
    """Return the fewest bits that hold the sum with ``bound / step = ratio``."""
    return math.floor(clients * (Fraction(ratio) + Fraction(1, 2))).bit_length() + 1
