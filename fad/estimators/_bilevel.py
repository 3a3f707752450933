"""A federated bilevel problem, and what one round tells of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError, describe, nearest
from fad.local import Batches, evaluate
from fad.placement import AtClients, is_at_clients, program
from fad.primitives import map as fad_map
from fad.primitives import weighted_mean
from fad.solvers._clients import WEIGHTINGS, Weighting
from fad.solvers._clients import client as _client

Loss = Callable[..., jax.Array]


class Split(NamedTuple):
    """One client's examples: those of the lower level and those of the upper level."""

    lower: Batches
    upper: Batches


class Bilevel(NamedTuple):
    """``min_x mean_i f_i(x, y*(x))`` with ``y*(x) = argmin_y mean_i g_i(x, y)``.

    ``x`` and ``y`` are pytrees of real arrays at the server. ``f_i`` and ``g_i`` are
    the means of ``upper`` and ``lower`` over a client's real rows.

    Attributes:
        upper: ``upper(x, y, examples) -> [batch]``.
        lower: ``lower(x, y, examples) -> [batch]``; a regulariser is added to each row.
        weighting: How clients count: ``"uniform"``, one each if they have a real row of
            that level, or by ``"examples"``.
        random: Whether both losses take a key as fourth argument, for dropout.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> problem = fad.estimators.Bilevel(
        ...     upper=lambda x, y, e: (y - e["target"]) ** 2 / 2,
        ...     lower=lambda x, y, e: (y - x - e["shift"]) ** 2 / 2,
        ... )
    """

    upper: Loss
    lower: Loss
    weighting: Weighting = "uniform"
    random: bool = False


@dataclass(frozen=True, eq=False)
class Client:
    """The two objectives at one client, and their derivatives, as functions.

    Attributes:
        problem: The problem.
        split: The client's examples, finite in the padding.
        key: Its own key for random losses, or None.
    """

    problem: Bilevel
    split: Split
    key: jax.Array | None

    @property
    def weights(self) -> tuple[jax.Array, jax.Array]:
        """How it counts in means of the lower and of the upper level, ``[]`` float32.

        It is 0 where the client has no real rows of the level.
        """
        lower, upper = (
            _client(batches, None, self.problem.weighting).weight
            for batches in self.split
        )
        return lower, upper

    def f(self, x: Any, y: Any) -> jax.Array:
        """Return ``f_i(x, y)``."""
        return self._mean(self.problem.upper, x, y, self.split.upper)

    def g(self, x: Any, y: Any) -> jax.Array:
        """Return ``g_i(x, y)``."""
        return self._mean(self.problem.lower, x, y, self.split.lower)

    def f_xy(self, x: Any, y: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        """Return ``f_i`` and its gradients by x and by y."""
        return jax.value_and_grad(self.f, (0, 1))(x, y)

    def f_y(self, x: Any, y: Any) -> tuple[jax.Array, Any]:
        """Return ``f_i`` and its gradient by y."""
        return jax.value_and_grad(self.f, 1)(x, y)

    def g_y(self, x: Any, y: Any) -> Any:
        """Return the gradient of ``g_i`` by y."""
        return jax.grad(self.g, 1)(x, y)

    def hessian(self, x: Any, y: Any, v: Any) -> Any:
        """Return ``(d^2 g_i / dy^2) v``, forward over reverse."""
        return jax.jvp(lambda y: self.g_y(x, y), (y,), (v,))[1]

    def cross(self, x: Any, y: Any, v: Any) -> Any:
        """Return ``(d^2 g_i / dx dy) v``, of x's structure."""

        def along(x: Any) -> jax.Array:
            return jax.jvp(lambda y: self.g(x, y), (y,), (v,))[1]

        return jax.grad(along)(x)

    def _mean(self, loss: Loss, x: Any, y: Any, batches: Batches) -> jax.Array:
        def at_y(y: Any, *examples: Any) -> jax.Array:
            return loss(x, y, *examples)

        return evaluate(y, batches, loss=at_y, key=self.key)[0]


def client_of(problem: Bilevel, split: Split, key: jax.Array | None) -> Client:
    """Return a client in a round, as ``round_means`` gives it to its ``work``.

    Args:
        problem: The problem.
        split: The client's examples, with anything in the padding.
        key: The round's key, for random losses, or None.

    Returns:
        The client, with its own key.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> first = jax.tree.map(lambda a: a[0, 0], cohorts.unsafe_gather())
        >>> client = fad.estimators.client_of(problem, first, None)
        >>> client.g_y(jnp.ones(2), jnp.ones(3)).shape
        (3,)
    """
    lower, upper = (_client(b, key, problem.weighting) for b in split)
    clean = Split(lower.batches, upper.batches)
    return Client(problem, clean, lower.key if problem.random else None)


def round_means(
    problem: Bilevel,
    work: Callable[[Client], tuple[Any, Any]],
    cohort: AtClients[Split],
    key: jax.Array | None,
) -> tuple[Any, Any]:
    """Run one round of a bilevel problem: means of what clients say of each level.

    Server values that ``work`` closes over are broadcast. A client without real rows of
    a level counts for nothing in that level's mean.

    Args:
        problem: The problem, for its losses and its weighting.
        work: ``work(client) -> (lower, upper)``, two pytrees of real arrays, of which
            either may be empty; ``client`` is a ``fad.estimators.Client``.
        cohort: ``[n, *]``, the clients' ``Split``.
        key: The round's key, for random losses, or None.

    Returns:
        The means of the two at the server.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> cohort = jax.tree.map(lambda a: a[0], cohorts)
        >>> x, y = jnp.ones(2), jnp.ones(3)
        >>> work = lambda client: (client.g_y(x, y), client.f(x, y))
        >>> gradient, value = fad.estimators.round_means(problem, work, cohort, None)
        >>> gradient.shape, value.shape
        ((3,), ())
    """

    @program
    def round(cohort: AtClients[Split]) -> tuple[Any, Any]:
        def at_client(split: Split) -> tuple[Any, Any]:
            return work(client_of(problem, split, key))

        def weigh(split: Split) -> tuple[jax.Array, jax.Array]:
            return Client(problem, split, None).weights

        # Of the data alone: their sums wait for nothing that the server sends.
        parts, weights = fad_map(at_client, cohort), fad_map(weigh, cohort)
        lower, upper = (
            weighted_mean(part, weight) if jax.tree.leaves(part) else part
            for part, weight in zip(parts, weights, strict=True)
        )
        return lower, upper

    return round(cohort)


def cohort_at(cohorts: AtClients[Any], j: Any) -> AtClients[Any]:
    """Return the cohort of round ``j``, from 0: they are taken in turn.

    Args:
        cohorts: ``[k, n, *]``, stacked.
        j: The round, a number or ``[]`` int.

    Returns:
        That of place ``j`` modulo k, ``[n, *]``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> cohorts = fad.AtClients(jnp.array([[1, 2], [3, 4]]))
        >>> fad.estimators.cohort_at(cohorts, 3).unsafe_gather().tolist()
        [3, 4]
    """
    k = jax.tree.leaves(cohorts)[0].shape[0]
    at = 0 if k == 1 else jnp.mod(j, k)
    return jax.tree.map(lambda a: a[at], cohorts)


def check_problem(call: str, problem: Any) -> None:
    """Refuse what is no problem.

    Raises:
        FadError: If it is none, or its weighting is unknown.
    """
    if not isinstance(problem, Bilevel):
        raise FadError(
            f"{call}: problem is {describe(problem)}; expected a "
            "fad.estimators.Bilevel(upper=..., lower=...)."
        )
    if problem.weighting not in WEIGHTINGS:
        raise FadError(
            f"{call}: problem.weighting is {problem.weighting!r}. "
            f"{nearest(str(problem.weighting), WEIGHTINGS, 'weightings')}"
        )


def check_cohorts(call: str, cohorts: Any) -> None:
    """Refuse what are no cohorts of a bilevel problem.

    Raises:
        FadError: If they are no clients' splits, or not stacked over rounds.
    """
    tree = cohorts.unsafe_gather() if is_at_clients(cohorts) else None
    if not isinstance(tree, Split) or not all(isinstance(b, Batches) for b in tree):
        raise FadError(
            f"{call}: cohorts is {describe(cohorts)}; expected fad.AtClients("
            "fad.estimators.Split(lower, upper)) with fad.local.Batches in each."
        )
    for name, batches in zip(Split._fields, tree, strict=True):
        if getattr(batches.mask, "ndim", 0) != 4:
            raise FadError(
                f"{call}: cohorts.{name}.mask is {describe(batches.mask)}; expected "
                "[k, n, steps, batch], cohorts stacked over rounds. For one cohort in "
                "all rounds: jax.tree.map(lambda a: a[None], cohort)."
            )
