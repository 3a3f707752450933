"""The decoder of a lower problem with a term that has no gradient."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from fad.decoders._checks import check_step, check_tolerance
from fad.decoders._decoder import Decoder, relative
from fad.decoders._iterate import iterate
from fad.decoders._solve import normal_equations
from fad.estimators import implicit
from fad.estimators._checks import check_count
from fad.estimators._implicit import LinearSolver
from fad.estimators._vectors import add, norm


def proximal(
    gradient: Callable[[Any, Any, Any], Any],
    prox: Callable[[Any, Any, Any, float], Any],
    init: Callable[[Any, Any], Any],
    *,
    steps: int,
    step: float,
    accelerated: bool = True,
    tolerance: float = 0.0,
    largest: float | None = None,
    solve: Literal["cg", "neumann"] | LinearSolver = "cg",
    terms: int = 50,
) -> Decoder:
    """Make the decoder ``y(x) = argmin_y g(x, y, data) + h(x, y, data)``.

    Decode: ``y <- prox(x, y - step grad_y g(x, y, data), data, step)``, ISTA, or with
    momentum FISTA. Encode differentiates this step's fixed point: with P the derivative
    of prox by y and H that of the gradient,

        dy = (I - P (I - step H))^-1 d(step by x and data),

    where its inverse exists (for the l1 norm: where the active columns are
    independent). It is not symmetric: ``"neumann"`` is the series
    ``sum_{q=0}^{terms} (P (I - step H))^q``, the derivative of ``terms`` steps of ISTA
    from the solution, and ``"cg"`` conjugate gradients on the normal equations.

    Args:
        gradient: ``gradient(x, y, data)``, that of g by y, in y's structure. What is
            differentiated by comes by argument.
        prox: ``prox(x, y, data, step)``, ``argmin_u |u - y|^2 / 2 + step h(x, u,
            data)``.
        init: ``init(x, data) -> y``, where it begins.
        steps: The most steps.
        step: At most 1 over the largest eigenvalue of H if accelerated, else below 2.
        accelerated: FISTA, with restarts; if not, ISTA.
        tolerance: Where to end before: once a step moves y by at most
            ``tolerance |y|``.
        largest: That eigenvalue where it is known: a step that is too long is refused.
        solve: ``"cg"``, ``"neumann"``, or as of ``fad.estimators.implicit``.
        terms: The products of an encoding.

    Returns:
        The decoder; its residual is the way of a step from y, over that of the first.

    Raises:
        FadError: If an option is out of range; when called, as
            ``fad.estimators.implicit``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> soft = proximal(
        ...     lambda x, y, data: y - x,
        ...     lambda x, y, data, step: (
        ...         jnp.sign(y) * jax.nn.relu(abs(y) - step * data)
        ...     ),
        ...     lambda x, data: jnp.zeros_like(x),
        ...     steps=50,
        ...     step=0.5,
        ...     largest=1.0,
        ... )
        >>> decode = lambda x: soft.decode(x, jnp.array(1.0))
        >>> y, encode = jax.vjp(decode, jnp.array([3.0, 0.5]))
        >>> y.tolist(), encode(jnp.ones(2))[0].tolist()
        ([2.0, 0.0], [1.0, 0.0])

    References:
        Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear
        inverse problems", SIAM Journal on Imaging Sciences 2009; Li and Huang,
        "Resolving the Tug-of-War: A Separation of Communication and Learning in
        Federated Learning", NeurIPS 2023, appendix A.1.
    """
    call = "fad.decoders.proximal"
    steps = check_count(call, "steps", steps, least=1)
    terms = check_count(call, "terms", terms, least=1)
    check_step(call, step, largest, accelerated=accelerated)
    tolerance = check_tolerance(call, tolerance)

    def advance(x: Any, y: Any, data: Any) -> Any:
        return prox(x, add(y, gradient(x, y, data), -step), data, step)

    def moved(x: Any, y: Any, data: Any) -> Any:
        return add(y, advance(x, y, data), -1.0)

    def find(x: Any, data: Any) -> Any:
        return iterate(
            lambda y: advance(x, y, data),
            init(x, data),
            steps=steps,
            tolerance=tolerance,
            accelerated=accelerated,
        )

    def residual(x: Any, y: Any, data: Any) -> jax.Array:
        return relative(norm(moved(x, y, data)), norm(moved(x, init(x, data), data)))

    chosen = normal_equations(terms) if solve == "cg" else solve
    options = {"terms": terms, "step": 1.0, "symmetric": False}
    return Decoder(implicit(find, moved, solve=chosen, **options), residual)
