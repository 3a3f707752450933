"""The shortest solution of a sketch: FedSep without a penalty.

With ``beta = 0`` the lower problem ``|S theta - omega|^2`` has many solutions where p <
d, and the paper's ``(S^T S)^-1`` (Remark 2) is of a singular matrix. The shortest of
them is unique and linear in omega:

    theta = S^T (S S^T)^-1 omega        encode: (S S^T)^-1 S v, its transpose
"""

from collections.abc import Callable
from typing import Any

import jax

from fad.aggregators._vector import at_least_single
from fad.decoders._decoder import Decoder, relative
from fad.decoders._sketch import Sketch, of_data
from fad.decoders._solve import conjugate_gradients
from fad.estimators._checks import check_count
from fad.estimators._vectors import norm


def min_norm(sketch: Sketch | Callable[[Any], Sketch], *, terms: int = 100) -> Decoder:
    """Make the decoder of the shortest theta with ``S theta = omega``.

    Args:
        sketch: S, or of the client's data: ``data -> S``.
        terms: The most products with ``S S^T``, for conjugate gradients. They converge
            quickly for p well below d; at p = d they may not.

    Returns:
        The decoder, ``[p] -> [d]``; its residual is ``|S theta - omega| / |omega|``.

    Raises:
        FadError: If ``terms < 1`` or the sketch is none.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> decoder = min_norm(fad.decoders.hadamard(2, 4, 0))
        >>> y, encode = jax.vjp(lambda x: decoder.decode(x, None), jnp.ones(2))
        >>> encode(y)[0].round(3).tolist()  # the squared length: 2 p / d
        [0.5, 0.5]
    """
    call = "fad.decoders.min_norm"
    terms = check_count(call, "terms", terms, least=1)
    made = of_data(call, sketch)
    solve = conjugate_gradients(terms)

    def decode(omega: jax.Array, data: Any) -> jax.Array:
        s, x = made(data), at_least_single(omega)
        v = jax.lax.custom_linear_solve(s.gram, x, solve, symmetric=True)
        return s.transpose(v).astype(omega.dtype)

    def residual(omega: jax.Array, theta: jax.Array, data: Any) -> jax.Array:
        x, y = at_least_single(omega), at_least_single(theta)
        return relative(norm(made(data).apply(y) - x), norm(x)).astype(omega.dtype)

    return Decoder(decode, residual)
