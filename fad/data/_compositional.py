"""Federated compositions of functions as bilevel quadratics."""

import numpy as np

from fad.data._checks import natural, positive, real
from fad.data._quadratic_loss import Quadratic
from fad.data._quadratics import Quadratics


def compositional(
    clients: int,
    *,
    inner_size: int = 10,
    upper_size: int = 5,
    penalty: float = 0.1,
    seed: int,
) -> Quadratics:
    """Draw the clients of a federated compositional problem with a closed form.

    ``min_x mean_i f_i(mean_j r_j(x)) + penalty |x|^2 / 2`` with ``r_i(x) = B_i x +
    c_i`` and ``f_i(y) = |y - d_i|^2 / 2``, all of normal numbers, those of ``B_i`` with
    variance 1 / inner_size. No client knows the mean of the ``r_j`` that its ``f_i`` is
    taken at. As a bilevel problem ``g_i = |y - r_i(x)|^2 / 2``, up to a term without y.

    With the means B, c and d, ``y*(x) = B x + c``, and the optimum solves ``(B'B +
    penalty I) x = B'(d - c)``.

    Args:
        clients: The number of clients.
        inner_size: The size of ``r_i(x)``, which is that of y.
        upper_size: The size of x.
        penalty: The curvature added in x.
        seed: The seed of the draw.

    Returns:
        The clients; ``quadratic_problem`` turns them into a problem and its cohorts.

    Raises:
        DataError: If a count is not a positive integer, or the penalty is negative or
            not finite.

    Example:
        >>> data = compositional(20, inner_size=3, upper_size=2, seed=0)
        >>> bool(np.allclose(data.hypergradient(data.optimum()), 0))
        True

    Source: D. A. Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and
    Compositional Optimization, ICML 2022, section 3.
    """
    call = "compositional"
    n, p = positive(call, "clients", clients), positive(call, "inner_size", inner_size)
    q = positive(call, "upper_size", upper_size)
    curvature = real(call, "penalty", penalty) * np.eye(q)
    rng = np.random.default_rng(natural(call, "seed", seed))
    one = np.broadcast_to(np.eye(p), (n, p, p))
    return Quadratics(
        Quadratic(
            A=one,
            C=-rng.normal(size=(n, p, q)) / np.sqrt(p),
            a=-rng.normal(size=(n, p)),
            F=one,
            K=np.zeros((n, p, q)),
            f=-rng.normal(size=(n, p)),
            H=np.broadcast_to(curvature, (n, q, q)),
            h=np.zeros((n, q)),
        )
    )
