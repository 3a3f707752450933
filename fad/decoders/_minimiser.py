"""The decoder of a strongly convex lower problem, by gradient descent."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from fad.decoders._checks import check_step, check_tolerance
from fad.decoders._decoder import Decoder, relative
from fad.decoders._iterate import iterate
from fad.estimators import implicit
from fad.estimators._checks import check_count
from fad.estimators._implicit import LinearSolver
from fad.estimators._vectors import add, norm


def minimiser(
    gradient: Callable[[Any, Any, Any], Any],
    init: Callable[[Any, Any], Any],
    *,
    steps: int,
    step: float,
    tolerance: float = 0.0,
    largest: float | None = None,
    solve: Literal["cg", "neumann"] | LinearSolver = "cg",
    terms: int = 20,
) -> Decoder:
    """Make the decoder ``y(x) = argmin_y g(x, y, data)`` of a strongly convex g.

    Decode: ``y <- y - step grad_y g(x, y, data)``. Encode, of what decode returned:

        (dy/dx)^T v = -grad_xy g (grad_yy g)^-1 v

    by conjugate gradients, or by the sum of Eq. 3 with Q = ``terms``,
    ``-step grad_xy g sum_{q=0}^Q (I - step grad_yy g)^q v``. The sign is that of the
    derivative: the paper's Enc is its negative, and its server subtracts.

    Args:
        gradient: ``gradient(x, y, data)``, that of g by y, in y's structure. What is
            differentiated by comes by argument.
        init: ``init(x, data) -> y``, where the descent begins.
        steps: The most steps.
        step: Below 2 over the largest eigenvalue of ``grad_yy g``.
        tolerance: Where to end before: once a step moves y by at most
            ``tolerance |y|``.
        largest: That eigenvalue where it is known: a step that is too long is refused.
        solve: As of ``fad.estimators.implicit``.
        terms: The products with ``grad_yy g`` of an encoding.

    Returns:
        The decoder; its residual is ``|grad_y g|`` over the one at ``init(x, data)``.

    Raises:
        FadError: If an option is out of range; when called, as
            ``fad.estimators.implicit``.

    Example:
        >>> import jax
        >>> mean = minimiser(
        ...     lambda x, y, data: y - data * x,
        ...     lambda x, data: 0 * x,
        ...     steps=100,
        ...     step=0.5,
        ...     largest=1.0,
        ... )
        >>> y, encode = jax.vjp(lambda x: mean.decode(x, 3.0), 2.0)
        >>> float(y), float(encode(1.0)[0])
        (6.0, 3.0)

    References:
        Li and Huang, "Resolving the Tug-of-War: A Separation of Communication and
        Learning in Federated Learning", NeurIPS 2023, Algorithm 1 and Eq. 3.
    """
    call = "fad.decoders.minimiser"
    steps = check_count(call, "steps", steps, least=1)
    check_step(call, step, largest)
    tolerance = check_tolerance(call, tolerance)

    def descend(x: Any, data: Any) -> Any:
        return iterate(
            lambda y: add(y, gradient(x, y, data), -step),
            init(x, data),
            steps=steps,
            tolerance=tolerance,
            accelerated=False,
        )

    def residual(x: Any, y: Any, data: Any) -> jax.Array:
        start = norm(gradient(x, init(x, data), data))
        return relative(norm(gradient(x, y, data)), start)

    decode = implicit(descend, gradient, solve=solve, terms=terms, step=step)
    return Decoder(decode, residual)
