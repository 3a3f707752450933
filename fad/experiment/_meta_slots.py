"""Inner runs that live side by side: each is started anew when its rounds are over."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad import estimators
from fad.aggregators import Aggregator
from fad.estimators import Estimate, Estimator
from fad.experiment._meta_config import MetaTraining
from fad.experiment._meta_federation import Family
from fad.experiment._meta_round import Inner, make_round


class Slot:
    """One place for inner runs, one after the other.

    Everything of a run depends on the seed, the slot and the run's number alone.
    """

    def __init__(
        self,
        config: MetaTraining,
        family: Family,
        aggregator: Aggregator,
        estimator: Estimator,
        estimate: Callable[..., Estimate],
        place: tuple[int, int],
    ) -> None:
        self.label, self._config, self._family = family.label, config, family
        self._aggregator, self._estimator = aggregator, estimator
        self._estimate = estimate
        self._place, slots = place
        windows = config.rounds // config.window
        # The first runs end at different meta-steps, and so do all that follow.
        self._first_life = -(-windows * (self._place + 1) // slots) * config.window
        self.run = self.age = 0
        self.carry: Any = None

    def start(self, theta: Any, run: int) -> None:
        """Start the run of this number."""
        self.run, self.age = run, 0
        self._draw()
        init, _, own = jax.random.split(jax.random.fold_in(self._key, 0), 3)
        params = self._family.init(init)
        server, lr = self._aggregator.init(params), jnp.float32(self._lr)
        state = Inner(params, server, lr, jnp.int32(0))
        self.carry = self._estimator.init(theta, state, own)

    def advance(self, theta: Any) -> Estimate:
        """Run a window, and differentiate it."""
        key, start = jax.random.fold_in(self._key, 1), self.age
        cohorts = self._family.window(self._clients, key, start)
        rounds = start + np.arange(self._config.window)
        keys = jax.vmap(lambda t: jax.random.fold_in(self._key, 2 + t))(rounds)
        estimate = self._estimate(theta, self.carry, cohorts, keys)
        self.carry, self.age = estimate.carry, start + self._config.window
        return estimate

    def over(self) -> bool:
        """Say whether the run has had its rounds."""
        return self.age >= (self._first_life if self.run == 0 else self._config.rounds)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        place = np.array([self.run, self.age], np.int32)
        return {"carry": self.carry, "place": place}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.carry = state["carry"]
        self.run, self.age = map(int, state["place"])
        self._draw()

    def _draw(self) -> None:
        words = [self._config.seed, self._place, self.run]
        self._clients, self._lr = self._family.draw(np.random.SeedSequence(words))
        key = jax.random.key(self._config.seed)
        for word in (self._place, self.run):
            key = jax.random.fold_in(key, word)
        self._key = key


def make_slots(config: MetaTraining, aggregator: Aggregator) -> list[Slot]:
    """Make the slots of a configuration; each family compiles one window."""
    count, slots = sum(f.runs for f in config.federation), []
    for federation in config.federation:
        family = Family(config, federation)
        one_round = make_round(aggregator, family.loss, config)
        estimator = _estimator(config, one_round)
        estimate = jax.jit(estimator.estimate)
        for _ in range(federation.runs):
            place = (len(slots), count)
            slots.append(Slot(config, family, aggregator, estimator, estimate, place))
    return slots


def _estimator(config: MetaTraining, one_round: Any) -> Estimator:
    match config.estimator:
        case "reverse":
            return estimators.reverse(one_round)
        case "forward":
            return estimators.forward(one_round)
        case "es":
            return estimators.es(one_round, sigma=config.sigma, pairs=config.pairs)
        case "pes":
            return estimators.pes(one_round, sigma=config.sigma, pairs=config.pairs)
