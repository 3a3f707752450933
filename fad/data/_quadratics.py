"""Federated bilevel quadratics: every derivative has a closed form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import DataError
from fad.data._checks import positive
from fad.data._quadratic_checks import (
    check_clients,
    check_count,
    check_heterogeneity,
    check_step_size,
    check_vector,
)
from fad.data._quadratic_loss import Quadratic, averaging_round, draw_clients
from fad.placement import AtClients


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Quadratics:
    """Heterogeneous clients that minimise quadratics, with the exact answers.

    The bilevel problem is to minimise ``mean_i f_i(x, y*(x))`` over ``x``, where
    ``y*(x)`` minimises ``mean_i g_i(x, y)`` over ``y``. **There are two truths**:

    * the bilevel one: ``solution``, ``hypergradient``, ``optimum``;
    * that of federated averaging, whose clients drift apart between two averages.
      Unless they take one step a round or share their ``A``, more rounds lead to
      another point with another derivative: ``fedavg``, ``fedavg_hypergradient``,
      ``fedavg_fixed_point``, ``fedavg_fixed_point_hypergradient``.

    A test names the one it means. numpy computes the answers in double precision,
    whatever that of JAX. In the formulas a letter without index is the unweighted mean
    over clients. At ``x = 0`` the lower problem is the single-level quadratic.

    Args:
        clients: A ``Quadratic`` whose arrays have a leading client axis, ``[n, *]``.

    Raises:
        DataError: If shapes do not fit, a number is not finite, A, F or H is not
            symmetric, or an A is not positive definite.

    Example:
        >>> data = Quadratics.random(3, lower_size=2, upper_size=1, seed=0)
        >>> x, y0 = np.ones(1), np.zeros(2)
        >>> y = data.fedavg(x, y0, rounds=500, steps=1, lr=0.5)
        >>> bool(np.allclose(y, data.solution(x)))
        True
    """

    clients: Quadratic

    def __post_init__(self) -> None:
        """Turn the arrays into float64 and check them."""
        arrays = Quadratic(*(np.asarray(x, np.float64) for x in self.clients))
        object.__setattr__(self, "clients", arrays)
        check_clients(arrays)

    @classmethod
    def random(
        cls,
        clients: int,
        *,
        lower_size: int = 20,
        upper_size: int = 10,
        heterogeneity: float = 1.0,
        mu: float = 0.1,
        L: float = 1.0,
        seed: int,
    ) -> "Quadratics":
        """Draw clients whose lower Hessians have their eigenvalues in [mu, L].

        ``A_i = (1 - t) A' + t A'_i`` and ``C_i = (1 - t) C' + t C'_i`` with
        ``t = heterogeneity``: a common part and the client's own. The other terms are
        always the client's own; they make no client drift. The upper losses are convex
        in (x, y), with eigenvalues in [mu, L], so the bilevel problem has one optimum.
        A client depends on the seed and its own number alone.

        Args:
            clients: The number of clients, n.
            lower_size: The size of y, p.
            upper_size: The size of x, q.
            heterogeneity: From 0, the same A and C everywhere, to 1, independent ones.
            mu: The least eigenvalue, positive.
            L: The greatest eigenvalue, at least mu.
            seed: The seed of all arrays.

        Returns:
            The clients.

        Raises:
            DataError: If a count is not a positive integer, heterogeneity is outside
                [0, 1], or not ``0 < mu <= L``.

        Example:
            >>> Quadratics.random(3, seed=0)
            Quadratics(num_clients=3, lower_size=20, upper_size=10)
        """
        call = "Quadratics.random"
        clients = positive(call, "clients", clients)
        p = positive(call, "lower_size", lower_size)
        q = positive(call, "upper_size", upper_size)
        check_heterogeneity(call, heterogeneity)
        if not 0 < mu <= L < np.inf:
            raise DataError(
                f"fad.data.{call}(mu=..., L=...): expected 0 < mu <= L, the range of "
                f"the eigenvalues; got mu={mu!r} and L={L!r}."
            )
        return cls(draw_clients(clients, (p, q), heterogeneity, (mu, L), seed))

    @property
    def num_clients(self) -> int:
        """The number of clients, n."""
        return len(self.clients.a)

    @property
    def mean(self) -> Quadratic:
        """The mean of the clients' losses, which is a quadratic too."""
        return Quadratic(*(x.mean(axis=0) for x in self.clients))

    def at_clients(self) -> AtClients[Quadratic]:
        """Return a client value: in ``fad.map`` every client has its ``Quadratic``.

        The arrays take JAX's default precision.

        Example:
            >>> import fad
            >>> data = Quadratics.random(3, lower_size=2, upper_size=1, seed=0)
            >>> @fad.program
            ... def lower(x, y, clients):
            ...     return fad.mean(fad.map(lambda own: own.lower(x, y), clients))
            >>> float(lower(jnp.zeros(1), jnp.zeros(2), data.at_clients()))
            0.0
        """
        return AtClients(jax.tree.map(jnp.asarray, self.clients))

    def solution(self, x: Any) -> np.ndarray:
        """Return ``y*(x) = -A^-1 (C x + a)``: ``[q] -> [p]``."""
        mean, x = self.mean, self._x("solution", x)
        return -np.linalg.solve(mean.A, mean.C @ x + mean.a)

    def hypergradient(self, x: Any) -> np.ndarray:
        """Return the gradient of ``mean_i f_i(x, y*(x))`` in x: ``[q] -> [q]``.

        ``Hx + h + K'y* + J'(F y* + K x + f)`` with ``J = dy*/dx = -A^-1 C``.
        """
        x = self._x("hypergradient", x)
        return self._chain(x, self.solution(x), self._response())

    def optimum(self) -> np.ndarray:
        """Return the ``x: [q]`` at which the hypergradient is zero.

        It solves ``(H + K'J + J'K + J'FJ) x = -(h + K's + J'(F s + f))`` with
        ``J = -A^-1 C`` and ``s = y*(0)``; for clients of ``random`` it is the minimum.
        """
        mean, response = self.mean, self._response()
        zero = np.zeros(len(mean.h))
        offset = self._chain(zero, self.solution(zero), response)
        cross = mean.K.T @ response
        curvature = mean.H + cross + cross.T + response.T @ mean.F @ response
        return -np.linalg.solve(curvature, offset)

    def fedavg(
        self, x: Any, y0: Any, *, rounds: int, steps: int, lr: float
    ) -> np.ndarray:
        """Return y after federated averaging on the lower losses: ``[q], [p] -> [p]``.

        Each round all clients start from y, take ``steps`` gradient steps on their own
        ``g_i``, and are averaged: ``y <- M y - B x - b`` with ``P_i = I - lr A_i``,
        ``N_i = A_i^-1 (I - P_i^steps)``, ``M = mean P_i^steps``, ``B = mean N_i C_i``
        and ``b = mean N_i a_i``.

        Args:
            x: The upper variable, ``[q]``.
            y0: The start, ``[p]``.
            rounds: The number of rounds, at least 0.
            steps: The local steps of a round, at least 0.
            lr: The local step size, positive.
        """
        call = "fedavg"
        x, y = self._x(call, x), check_vector(call, "y0", y0, self.clients.a.shape[1])
        m, b_x, b = self._round(call, steps, lr)
        for _ in range(check_count(call, "rounds", rounds)):
            y = m @ y - b_x @ x - b
        return y

    def fedavg_hypergradient(
        self,
        x: Any,
        y0: Any,
        *,
        rounds: int,
        steps: int,
        lr: float,
        last: int | None = None,
    ) -> np.ndarray:
        """Return the gradient of ``mean_i f_i(x, y_R(x))`` in x through ``fedavg``.

        ``Hx + h + K'y_R + J'(F y_R + K x + f)`` with
        ``J = -(I + M + ... + M^(k-1)) B`` and k = R rounds, or the last k only.

        Args:
            x: The upper variable, ``[q]``.
            y0: The start, ``[p]``, which does not depend on x.
            rounds: The number of rounds R, at least 0.
            steps: The local steps of a round, at least 0.
            lr: The local step size, positive.
            last: How many of the last rounds are differentiated, the y before them
                held constant, in 0..rounds; None takes all.
        """
        call = "fedavg_hypergradient"
        rounds = check_count(call, "rounds", rounds)
        last = rounds if last is None else check_count(call, "last", last)
        if last > rounds:
            raise DataError(
                f"fad.data.Quadratics.{call}(last={last}): there are only "
                f"rounds={rounds} to differentiate. Ask for at most that many."
            )
        x, (m, b_x, _) = self._x(call, x), self._round(call, steps, lr)
        response = np.zeros_like(b_x)
        for _ in range(last):
            response = m @ response - b_x
        y = self.fedavg(x, y0, rounds=rounds, steps=steps, lr=lr)
        return self._chain(x, y, response)

    def fedavg_fixed_point(self, x: Any, *, steps: int, lr: float) -> np.ndarray:
        """Return where ``fedavg`` stays, ``y = -(I - M)^-1 (B x + b)``: ``[q] -> [p]``.

        It is ``solution(x)`` where clients take one step or share their ``A``.

        Args:
            x: The upper variable, ``[q]``.
            steps: The local steps of a round, at least 0.
            lr: The local step size, positive, small enough to converge.
        """
        offset, response = self._fixed_point("fedavg_fixed_point", steps, lr)
        return offset + response @ self._x("fedavg_fixed_point", x)

    def fedavg_fixed_point_hypergradient(
        self, x: Any, *, steps: int, lr: float
    ) -> np.ndarray:
        """Return the gradient of ``mean_i f_i`` in x at the fixed point of ``fedavg``.

        As ``hypergradient``, with that y and ``J = -(I - M)^-1 B``: what the full
        ``fedavg_hypergradient`` tends to as rounds grow.

        Args:
            x: The upper variable, ``[q]``.
            steps: The local steps of a round, at least 0.
            lr: The local step size, positive, small enough to converge.
        """
        call = "fedavg_fixed_point_hypergradient"
        x, (offset, response) = self._x(call, x), self._fixed_point(call, steps, lr)
        return self._chain(x, offset + response @ x, response)

    def __repr__(self) -> str:
        """Give the sizes instead of the arrays."""
        n, p, q = self.clients.C.shape
        return f"Quadratics(num_clients={n}, lower_size={p}, upper_size={q})"

    def _response(self) -> np.ndarray:
        return -np.linalg.solve(self.mean.A, self.mean.C)

    def _chain(self, x: np.ndarray, y: np.ndarray, response: np.ndarray) -> np.ndarray:
        """Return the gradient of the mean upper loss where dy/dx is ``response``."""
        mean = self.mean
        of_y = mean.F @ y + mean.K @ x + mean.f
        return mean.H @ x + mean.h + mean.K.T @ y + response.T @ of_y

    def _round(
        self, call: str, steps: int, lr: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return M, B and b of a round, ``y <- M y - B x - b``."""
        steps, lr = check_count(call, "steps", steps), check_step_size(call, lr)
        return averaging_round(self.clients, steps, lr)

    def _fixed_point(
        self, call: str, steps: int, lr: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the fixed point at x = 0, and its derivative in x."""
        m, b_x, b = self._round(call, steps, lr)
        factor = np.abs(np.linalg.eigvalsh(m)).max()
        if factor >= 1:
            raise DataError(
                f"fad.data.Quadratics.{call}(steps={steps}, lr={lr!r}): a round does "
                f"not contract (factor {factor:.3g}), so averaging does not converge. "
                "Take at least one step and lr below 2 / L, L the greatest eigenvalue."
            )
        rest = np.eye(len(m)) - m
        return -np.linalg.solve(rest, b), -np.linalg.solve(rest, b_x)

    def _x(self, call: str, x: Any) -> np.ndarray:
        return check_vector(call, "x", x, self.clients.h.shape[1])
