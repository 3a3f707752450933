"""One client's quadratic losses, and what follows from many of them."""

from typing import Any, NamedTuple

import numpy as np

from fad.data._checks import natural


class Quadratic(NamedTuple):
    """One client's lower loss ``g`` and upper loss ``f`` of ``x: [q]`` and ``y: [p]``.

    ``g(x, y) = y'Ay/2 + y'Cx + a'y`` and
    ``f(x, y) = y'Fy/2 + y'Kx + f'y + x'Hx/2 + h'x``.

    Attributes:
        A: ``[p, p]``, symmetric and positive definite.
        C: ``[p, q]``.
        a: ``[p]``.
        F: ``[p, p]``, symmetric.
        K: ``[p, q]``.
        f: ``[p]``.
        H: ``[q, q]``, symmetric.
        h: ``[q]``.

    Example:
        >>> one, two = np.ones((1, 1)), np.array([2.0])
        >>> client = Quadratic(A=one, C=one, a=two, F=one, K=one, f=two, H=one, h=two)
        >>> float(client.lower(np.array([3.0]), np.array([1.0])))
        5.5
    """

    A: Any
    C: Any
    a: Any
    F: Any
    K: Any
    f: Any
    H: Any
    h: Any

    def lower(self, x: Any, y: Any) -> Any:
        """Return ``g(x, y) = y'Ay/2 + y'Cx + a'y``."""
        return y @ self.A @ y / 2 + y @ self.C @ x + self.a @ y

    def upper(self, x: Any, y: Any) -> Any:
        """Return ``f(x, y) = y'Fy/2 + y'Kx + f'y + x'Hx/2 + h'x``."""
        of_y = y @ self.F @ y / 2 + y @ self.K @ x + self.f @ y
        return of_y + x @ self.H @ x / 2 + self.h @ x


def draw_clients(
    clients: int,
    sizes: tuple[int, int],
    heterogeneity: float,
    spectrum: tuple[float, float],
    seed: int,
) -> Quadratic:
    """Draw the arrays of ``Quadratics.random``: leaves ``[clients, *]``."""
    p, t = sizes[0], heterogeneity
    seed = natural("Quadratics.random", "seed", seed)
    common_A, common_C = _draw_lower(np.random.default_rng(seed), sizes, spectrum)
    drawn = []
    for child in np.random.SeedSequence(seed).spawn(clients):
        rng = np.random.default_rng(child)
        A, C = _draw_lower(rng, sizes, spectrum)
        upper = _symmetric(rng, sum(sizes), spectrum)
        drawn.append(
            Quadratic(
                A=(1 - t) * common_A + t * A,
                C=(1 - t) * common_C + t * C,
                a=rng.normal(size=p),
                F=upper[:p, :p],
                K=upper[:p, p:],
                f=rng.normal(size=p),
                H=upper[p:, p:],
                h=rng.normal(size=sizes[1]),
            )
        )
    return Quadratic(*map(np.stack, zip(*drawn, strict=True)))


def averaging_round(
    clients: Quadratic, steps: int, lr: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return M, B and b of a round of federated averaging, ``y <- M y - B x - b``."""
    kept = np.linalg.matrix_power(np.eye(clients.A.shape[1]) - lr * clients.A, steps)
    taken = np.linalg.solve(clients.A, np.eye(clients.A.shape[1]) - kept)
    b = np.einsum("nij,nj->i", taken, clients.a) / len(taken)
    return kept.mean(axis=0), (taken @ clients.C).mean(axis=0), b


def _draw_lower(
    rng: np.random.Generator, sizes: tuple[int, int], spectrum: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    p, q = sizes
    return _symmetric(rng, p, spectrum), rng.normal(size=(p, q)) / np.sqrt(p)


def _symmetric(
    rng: np.random.Generator, size: int, spectrum: tuple[float, float]
) -> np.ndarray:
    """Draw a matrix with evenly spaced eigenvalues and random eigenvectors."""
    if size == 1:  # Nothing to space: clients differ by the number itself.
        return rng.uniform(*spectrum, (1, 1))
    vectors, _ = np.linalg.qr(rng.normal(size=(size, size)))
    matrix = vectors * np.linspace(*spectrum, size) @ vectors.T
    # Symmetric to the last bit: products are so up to rounding alone.
    return (matrix + matrix.T) / 2
