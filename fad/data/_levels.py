"""The clients of a bilevel task: the examples of two levels at the same clients."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fad._errors import DataError
from fad.data._checks import positive, seed_words
from fad.data._cohort import Recipe, recipe
from fad.data._cohorts import Cohorts, Place
from fad.data._federated import Federated
from fad.estimators import Split
from fad.placement import AtClients

# The upper level's stream of a key, for orders apart from the lower level's. The value
# never changes: cohorts depend on it.
_UPPER = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """Examples of a lower and of an upper level, at the same clients.

    Args:
        lower: The clients' examples of the lower level.
        upper: Those of the upper level, of the same clients in the same order.

    Raises:
        DataError: If the two have other numbers of clients, or other names.

    Example:
        >>> data = Federated({"x": np.arange(10)}, np.array([0, 4, 10]))
        >>> levels = Levels(*data.split(0.5, 0.5, seed=0))
        >>> levels.num_clients, levels.sizes.tolist()
        (2, [4, 6])
    """

    lower: Federated
    upper: Federated

    def __post_init__(self) -> None:
        """Check that the clients are the same."""
        check_same_clients("Levels", self.lower, self.upper)

    @property
    def num_clients(self) -> int:
        """The number of clients, empty ones included."""
        return self.lower.num_clients

    @property
    def sizes(self) -> np.ndarray:
        """How many examples of both levels every client has, ``[num_clients]``."""
        return self.lower.sizes + self.upper.sizes

    def cohort(
        self,
        key: jax.Array,
        size: int,
        *,
        upper_batch_size: int | None = None,
        upper_epochs: int = 1,
        **options: Any,
    ) -> AtClients[Split]:
        """Sample clients and lay out their batches of both levels.

        Both levels are of the same clients, drawn once. The lower level's are laid out
        as by ``Federated.cohort``; the orders of the upper level's examples are others.

        Args:
            key: A JAX random key, typed or raw; the same key gives the same cohort.
            size: The number of places.
            upper_batch_size: Examples in a batch of the upper level; None for all of a
                client in one batch, as wide as the federation's largest client.
            upper_epochs: How often each client goes through its upper examples.
            options: Those of ``Federated.cohort``. Batches, epochs and
                ``max_examples`` are the lower level's. Sampled by "size", clients are
                drawn in proportion to their examples of both levels.

        Returns:
            The cohort, ``AtClients(Split(lower, upper))`` with ``Batches`` in each.

        Raises:
            DataError: What ``Federated.cohort`` raises.

        Example:
            >>> data = Federated({"x": np.arange(10)}, np.array([0, 4, 10]))
            >>> levels = Levels(*data.split(0.5, 0.5, seed=0))
            >>> cohort = levels.cohort(jax.random.key(0), 2, batch_size=2)
            >>> lower, upper = cohort.unsafe_gather()
            >>> lower.mask.shape, upper.mask.shape, lower.client.tolist()
            ((2, 2, 2), (2, 1, 3), [0, 1])
        """
        return self._recipe(size, upper_batch_size, upper_epochs, options).make(key)

    def cohorts(
        self,
        key: jax.Array,
        size: int,
        *,
        place: Place = jax.device_put,
        prefetch: int = 1,
        state: Mapping[str, Any] | None = None,
        upper_batch_size: int | None = None,
        upper_epochs: int = 1,
        **options: Any,
    ) -> Cohorts:
        """Return the cohorts of rounds 1, 2 and so on, as ``Federated.cohorts`` does.

        Args:
            key: A JAX random key, typed or raw.
            size: The number of places in each cohort.
            place: As in ``Federated.cohorts``, and so are ``prefetch`` and ``state``.
            prefetch: How many cohorts are made ahead of their use.
            state: The ``state`` of earlier cohorts, to go on after their last round.
            upper_batch_size: As in ``cohort``.
            upper_epochs: As in ``cohort``.
            options: The other options of ``cohort``.

        Returns:
            An endless iterator; ``close`` it, or use it in a ``with`` block.

        Raises:
            DataError: What ``Federated.cohorts`` raises.
        """
        made = self._recipe(size, upper_batch_size, upper_epochs, options)
        cohorts = Cohorts(made, key, place=place, prefetch=prefetch)
        if state is not None:
            cohorts.restore(state)
        return cohorts

    def _recipe(
        self, size: int, batch: int | None, epochs: int, options: dict[str, Any]
    ) -> "_Recipe":
        if batch is not None:
            batch = positive("Levels.cohort", "upper_batch_size", batch)
        epochs = positive("Levels.cohort", "upper_epochs", epochs)
        if isinstance(options.get("sampling"), str) and options["sampling"] == "size":
            options = {**options, "sampling": self.sizes}
        lower = recipe(self.lower.examples, self.lower.offsets, size, **options)
        whole = max(1, int(self.upper.sizes.max()))
        of_upper = {"batch_size": batch or whole, "epochs": epochs}
        options = {k: x for k, x in options.items() if k != "max_examples"}
        upper = recipe(
            self.upper.examples, self.upper.offsets, size, **{**options, **of_upper}
        )
        return _Recipe(lower, upper)


@dataclasses.dataclass(frozen=True, eq=False)
class _Recipe:
    """How cohorts of both levels are made; the lower level's sampling draws them."""

    lower: Recipe
    upper: Recipe

    def make(self, key: jax.Array) -> AtClients[Split]:
        """Return the cohort of a key."""
        seed = seed_words("Levels.cohort", key)
        clients = self.lower.sampling.draw(seed)
        lower = self.lower.batches(seed, clients)
        return AtClients(Split(lower, self.upper.batches([*seed, _UPPER], clients)))

    def identity(self) -> dict[str, list[Any]]:
        """Return what tells these cohorts from those of other clients or options."""
        lower, upper = self.lower.identity(), self.upper.identity()
        return {name: lower[name] + upper[name] for name in lower}


def check_same_clients(call: str, lower: Federated, upper: Federated) -> None:
    """Refuse levels whose clients are not the same.

    Raises:
        DataError: If their numbers or their names differ.
    """
    where = f"fad.data.{call}(lower=..., upper=...)"
    hint = "Split every client in two by Federated.split."
    if lower.num_clients != upper.num_clients:
        raise DataError(
            f"{where}: expected the same clients in both, but lower has "
            f"{lower.num_clients} and upper {upper.num_clients}. {hint}"
        )
    if None in (lower.names, upper.names) or lower.names == upper.names:
        return
    pairs = zip(lower.names or (), upper.names or (), strict=True)
    i, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise DataError(
        f"{where}: expected the same clients in the same order, but client {i} is "
        f"{a!r} in lower and {b!r} in upper. {hint}"
    )
