"""Federated saddle points as bilevel quadratics."""

import numpy as np

from fad.data._checks import natural, positive, real
from fad.data._quadratic_loss import Quadratic
from fad.data._quadratics import Quadratics


def minimax(
    clients: int,
    *,
    size: int = 10,
    coupling: float = 0.1,
    noise: float = 1.0,
    penalty: float = 0.1,
    seed: int,
) -> Quadratics:
    """Draw the clients of a federated minimax problem with a saddle point at zero.

    ``min_x max_y mean_i f_i(x, y)`` with ``f_i = penalty |x|^2 / 2 - |y|^2 / 2 + b_i'y
    - t_i y'x``, the slopes ``t_i`` uniform in [0, coupling], the ``b_i`` normal of mean
    0 and deviation ``s_i``, centred over the clients, and ``s_i`` uniform in [0, 2
    noise]. As a bilevel problem ``g_i = -f_i``, up to a term without y, on which
    nothing depends. FedNest's are ``minimax(1000, noise=1 or 10)``, from x and y of
    tens.

    With the means t and b, ``y*(x) = b - t x``; the upper objective, ``penalty |x|^2 /
    2 + |b - t x|^2 / 2``, is least at ``t b / (t^2 + penalty)``: zero, as b is.

    Args:
        clients: The number of clients.
        size: The size of x and of y.
        coupling: The largest slope.
        noise: The mean deviation of the clients' ``b_i``.
        penalty: The curvature in x.
        seed: The seed of the draw.

    Returns:
        The clients; ``quadratic_problem`` turns them into a problem and its cohorts.

    Raises:
        DataError: If a count is not a positive integer, or another number is negative
            or not finite.

    Example:
        >>> data = minimax(20, size=3, seed=0)
        >>> bool(
        ...     np.allclose(data.optimum(), 0)
        ...     and np.allclose(data.solution([0] * 3), 0)
        ... )
        True

    Source: D. A. Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and
    Compositional Optimization, ICML 2022, figure 4.
    """
    call = "minimax"
    n, d = positive(call, "clients", clients), positive(call, "size", size)
    coupling, noise = real(call, "coupling", coupling), real(call, "noise", noise)
    rng = np.random.default_rng(natural(call, "seed", seed))
    slopes = rng.uniform(0, coupling, n)[:, None, None] * np.eye(d)
    b = rng.normal(size=(n, d)) * rng.uniform(0, 2 * noise, (n, 1))
    b -= b.mean(axis=0)
    one, zero = np.broadcast_to(np.eye(d), (n, d, d)), np.zeros((n, d))
    H = real(call, "penalty", penalty) * one
    return Quadratics(
        Quadratic(A=one, C=slopes, a=-b, F=-one, K=-slopes, f=b, H=H, h=zero)
    )
