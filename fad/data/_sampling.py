"""Which clients a round draws."""

import dataclasses
from typing import Any

import numpy as np

from fad._errors import DataError, describe

# Separate random streams of one key. The values never change: cohorts depend on them.
_SAMPLE, _AVAILABLE = 0, 2
_CALL = "fad.data.Federated.cohort"


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """A checked rule by which cohorts are drawn.

    Attributes:
        size: The places of a cohort.
        num_clients: The clients of the federation.
        replace: Whether a client may take two places.
        weights: ``[num_clients]``, in proportion to which clients are drawn; None for
            equal chances.
        chance: ``[num_clients]``, how likely a client is reachable; None for always.
    """

    size: int
    num_clients: int
    replace: bool
    weights: np.ndarray | None
    chance: np.ndarray | None

    def draw(self, seed: list[int]) -> np.ndarray:
        """Return the clients of one key, rising, with -1 for the places left empty."""
        rng = np.random.default_rng([*seed, _SAMPLE])
        reached = np.arange(self.num_clients)
        if self.chance is not None:
            draws = np.random.default_rng([*seed, _AVAILABLE]).random(self.num_clients)
            reached = reached[draws < self.chance]
        weights = None
        if self.weights is not None:
            reached = reached[self.weights[reached] > 0]
            weights = self.weights[reached]
        taken = np.full(self.size, -1)
        count = self.size if self.replace else min(self.size, reached.size)
        if reached.size:
            chosen = _choose(rng, reached.size, count, self.replace, weights)
            taken[:count] = np.sort(reached[chosen])
        return taken


def _choose(
    rng: np.random.Generator,
    n: int,
    count: int,
    replace: bool,
    weights: np.ndarray | None,
) -> np.ndarray:
    """Return ``count`` of the numbers below ``n``."""
    if weights is None:
        return rng.choice(n, count, replace=replace)
    if replace:
        return rng.choice(n, count, p=weights / weights.sum())
    # The winners of a race of exponential times are drawn one after the other, each in
    # proportion to its weight among those that remain.
    with np.errstate(over="ignore"):
        times = rng.standard_exponential(n) / weights
    return np.argpartition(times, count - 1)[:count]


def sampling_of(
    sizes: np.ndarray, size: int, *, replace: bool, sampling: Any, available: Any
) -> Sampling:
    """Check how a cohort of ``size`` places is drawn from clients of these sizes."""
    clients = len(sizes)
    if not isinstance(replace, bool | np.bool_):
        raise DataError(f"{_CALL}(replace=...): expected a bool; got {replace!r}.")
    if size > clients and not replace:
        raise DataError(
            f"{_CALL}(size={size}): clients are sampled without replacement and there "
            f"are only {clients}. Ask for fewer, or pass replace=True."
        )
    weights = _weights(sizes, sampling)
    chance = None if available is None else _chance(clients, available)
    if weights is not None:
        # So that the sum of huge weights stays finite.
        weights = weights / (weights.max() or 1.0)
        _check_enough(weights, size, replace)
    return Sampling(size, clients, bool(replace), weights, chance)


def _weights(sizes: np.ndarray, sampling: Any) -> np.ndarray | None:
    if isinstance(sampling, str):
        if sampling == "uniform":
            return None
        if sampling == "size":
            return sizes.astype(np.float64)
        raise DataError(
            f"{_CALL}(sampling={sampling!r}): expected 'uniform', 'size' or weights "
            f"[{len(sizes)}]."
        )
    weights = np.asarray(sampling)
    if weights.shape != sizes.shape or weights.dtype.kind not in "biuf":
        raise DataError(
            f"{_CALL}(sampling=...): expected 'uniform', 'size' or one weight per "
            f"client, [{len(sizes)}]; got {describe(sampling)}."
        )
    weights = weights.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise DataError(
            f"{_CALL}(sampling=...): expected weights that are finite and not "
            f"negative; got {weights[bad[0]]} for client {bad[0]}."
        )
    return weights


def _check_enough(weights: np.ndarray, size: int, replace: bool) -> None:
    needed, positive = 1 if replace else size, np.count_nonzero(weights)
    if positive < needed:
        raise DataError(
            f"{_CALL}(sampling=...): {needed} clients must have a positive weight, but "
            f"only {positive} of {len(weights)} have one (an empty client weighs "
            "nothing in 'size'). Ask for fewer clients, or pass replace=True."
        )


def _chance(clients: int, available: Any) -> np.ndarray:
    chance = np.asarray(available)
    if chance.shape != (clients,) or chance.dtype.kind not in "bf":
        raise DataError(
            f"{_CALL}(available=...): expected bools or probabilities [{clients}], one "
            f"per client; got {describe(available)}."
        )
    bad = np.flatnonzero(~((chance >= 0) & (chance <= 1)))
    if bad.size:
        raise DataError(
            f"{_CALL}(available=...): expected probabilities from 0 to 1; got "
            f"{chance[bad[0]]} for client {bad[0]}."
        )
    return chance.astype(np.float64)
