"""Which clients a round draws."""

import dataclasses
from typing import Any

import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import positive

# Separate random streams of one key. The values never change: cohorts depend on them.
_SAMPLE, _AVAILABLE, _TIERS = 0, 2, 4
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
        tiers: The equal runs that the places are cut into.
        tiers_by: Whether a ``"client"`` has a tier of its own, or all are shuffled in
            each ``"round"``.
    """

    size: int
    num_clients: int
    replace: bool
    weights: np.ndarray | None
    chance: np.ndarray | None
    tiers: int = 1
    tiers_by: str = "client"

    def draw(self, seed: list[int]) -> np.ndarray:
        """Return the clients of one key, ``[size]``, -1 for the places left empty.

        They rise and the empty places are the last: in each tier, if clients have their
        own; in all places with one tier; and nowhere if they are shuffled.
        """
        reached = self._reached(seed)
        if self.tiers == 1:
            return self._run([*seed, _SAMPLE], reached, self.size)
        if self.tiers_by == "client":
            places, tier = self.size // self.tiers, reached % self.tiers
            runs = [
                self._run([*seed, _TIERS, t], reached[tier == t], places)
                for t in range(self.tiers)
            ]
            return np.concatenate(runs)
        taken = self._run([*seed, _SAMPLE], reached, self.size)
        return np.random.default_rng([*seed, _TIERS]).permutation(taken)

    def _reached(self, seed: list[int]) -> np.ndarray:
        """Return the clients that can be drawn, rising."""
        reached = np.arange(self.num_clients)
        if self.chance is not None:
            draws = np.random.default_rng([*seed, _AVAILABLE]).random(self.num_clients)
            reached = reached[draws < self.chance]
        if self.weights is not None:
            reached = reached[self.weights[reached] > 0]
        return reached

    def _run(self, seed: list[int], reached: np.ndarray, places: int) -> np.ndarray:
        """Return some of the reached, ``[places]``, rising, then -1."""
        taken = np.full(places, -1)
        count = places if self.replace else min(places, reached.size)
        if reached.size:
            rng = np.random.default_rng(seed)
            weights = None if self.weights is None else self.weights[reached]
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
    sizes: np.ndarray,
    size: int,
    *,
    replace: bool,
    sampling: Any,
    available: Any,
    tiers: Any,
    tiers_by: Any,
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
    tiers = positive("Federated.cohort", "tiers", tiers)
    made = Sampling(size, clients, bool(replace), weights, chance, tiers, tiers_by)
    _check_tiers(made)
    return made


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


def _check_tiers(sampling: Sampling) -> None:
    """Refuse tiers that do not divide the places, or have too few clients."""
    size, tiers, by = sampling.size, sampling.tiers, sampling.tiers_by
    if by not in ("client", "round"):
        raise DataError(f"{_CALL}(tiers_by={by!r}): expected 'client' or 'round'.")
    if size % tiers:
        raise DataError(
            f"{_CALL}(size={size}, tiers={tiers}): the tiers are equal runs of places, "
            f"but {tiers} does not divide {size}. Use a multiple of {tiers}."
        )
    if tiers == 1 or by == "round":
        return
    own = np.arange(sampling.num_clients)
    if sampling.weights is not None:
        own = own[sampling.weights > 0]
    held = np.bincount(own % tiers, minlength=tiers)
    least = int(held.argmin())
    needed = 1 if sampling.replace else size // tiers
    if held[least] < needed:
        more = held[least] and not sampling.replace
        fix = "a smaller size, replace=True, " if more else ""
        raise DataError(
            f"{_CALL}(size={size}, tiers={tiers}): tier {least} needs {needed} of the "
            f"clients whose number is {least} modulo {tiers}, and only {held[least]} "
            f"can be drawn. Use {fix}fewer tiers, or tiers_by='round'."
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
