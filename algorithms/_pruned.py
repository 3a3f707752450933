"""A round of RABO or RAFBO: clients that hold slices of x, y and v.

The places of a cohort are cut into tiers; the clients of a tier hold as much each.
``S_i`` takes the slices that client i's keys name of z = (x, y, v), where v has the
keys of y; its transpose puts them into zeros. ``w_i`` is the client's lower weight, 0
without lower rows. In one round

    each client i:  z_i = S_i z;    q_i, directions at z_i, in the shapes of the slices
    server:         z <- z - lr q,  and for each coordinate j that somebody has
                    q_j = sum_{i has j} w_i q_ij / sum_{i has j} w_i     (coverage)
                    q_j = sum_{i has j} w_i q_ij / sum_i w_i             (naive)

What nobody has stays. A client's losses are those of a model made of its slices, so
that their derivatives are by the slices alone: no masks, and no larger arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import fad
from algorithms import _bilevel
from algorithms._bilevel import Oracle, Variables, move, times
from algorithms._pruned_coverage import coverage, of_all, warn
from algorithms.memfbo import differences, penalised
from fad import submodels
from fad.estimators import Bilevel, Client, Split, client_of

Form = Literal["difference", "penalty", "exact"]
Average = Literal["coverage", "naive"]
_KEYS = 2**31 - 1  # the stream of the keys; a client's is of its number
Work = Callable[[Client, Variables], Variables]  # the sums q_i at a client's slices


class Tier(NamedTuple):
    """What the clients of a tier hold.

    Attributes:
        problem: The losses, of what ``lift`` makes of a client's slices.
        keys: ``keys(z, rounds, key) -> of``, at the server; ``of(split) -> (x, y)``, at
            a client, the keys of both levels as ``fad.select`` takes them for one.
        lift: ``lift((x keys, y keys), x, y) -> (x, y)``; None for the slices.
        public: Whether the server knows the keys, of x and of y.
    """

    problem: Bilevel
    keys: Callable[[Variables, jax.Array, jax.Array], Callable[[Split], tuple]]
    lift: Callable[[tuple, Any, Any], tuple[Any, Any]] | None = None
    public: tuple[bool, bool] = (True, True)

    def of_slices(self, keys: tuple) -> Bilevel:
        """Return the losses of one client's slices."""
        lift = self.lift
        if lift is None:
            return self.problem

        def lifted(loss):
            return lambda x, y, *examples: loss(*lift(keys, x, y), *examples)

        upper, lower = lifted(self.problem.upper), lifted(self.problem.lower)
        return self.problem._replace(upper=upper, lower=lower)


class State(NamedTuple):
    """The server's state: its variables, and the number of rounds so far."""

    z: Variables
    rounds: jax.Array
    x = property(lambda self: self.z.x)
    y = property(lambda self: self.z.y)
    params = property(lambda self: self.z.params)


def oracle_of(form: Form, delta: float, penalty: float) -> Oracle:
    """Return the directions of a form: of ``memfbo.py``, or the exact ones."""
    if form == "exact":
        return _bilevel.exact
    return differences(delta) if form == "difference" else penalised(penalty)


def pruned(
    tiers: Sequence[Tier],
    init_x: Callable[[jax.Array], Any],
    init_y: Callable[[jax.Array], Any],
    work: Work,
    lrs: Variables,
    *,
    form: Form,
    average: Average,
    walked: Sequence[str],
) -> fad.Algorithm:
    """Build an algorithm of such rounds.

    Args:
        tiers: The tiers, in the order of the cohort's.
        init_x: ``init_x(key) -> x``.
        init_y: ``init_y(key) -> y``.
        work: What a client does.
        lrs: The server's steps.
        form: With ``"penalty"`` v begins as the lower variable that it is.
        average: How the server averages.
        walked: The variables whose ``q_i`` are sums over local steps.

    Returns:
        The algorithm, which warns once of each leaf that nobody holds fully.
    """
    begin, told = _bilevel.init(init_x, init_y), set()

    def init(key):
        z = begin(key)
        z = z._replace(v=z.y) if form == "penalty" else z
        return State(z, jnp.zeros((), jnp.int32))

    def step(state, cohort, key):
        parts = submodels.tiers(cohort, len(tiers))
        rounds = [
            _round(tier, part, state, key, work)
            for tier, part in zip(tiers, parts, strict=True)
        ]
        found, counts = zip(*rounds, strict=True)
        (x, (y, v), steps, value), weights = submodels.merged(found)
        sums = Variables(x, y, v)
        if average == "naive":
            sums = of_all(sums, Variables(weights[0], *weights[1]), weights[2])
        mean = times(1 / jnp.maximum(steps, 1), sums)._asdict()
        mean = {k: d if k in walked else getattr(sums, k) for k, d in mean.items()}
        metrics = {"upper_loss": value} | _bilevel.norms(Variables(**mean))
        public = [all(level) for level in zip(*(t.public for t in tiers), strict=True)]
        metrics |= coverage(jax.tree.map(lambda *c: sum(c), *counts), public)
        return State(move(state.z, sums, lrs), state.rounds + 1), metrics

    return fad.Algorithm(init, step, check=lambda metrics: warn(metrics, told))


def _round(
    tier: Tier, part: fad.AtClients[Split], state: State, key: jax.Array, work: Work
) -> tuple[fad.Coverage, Any]:
    """Return a tier's means of q, steps and upper losses, and who has what of x, y."""
    z, own = state.z, jax.random.fold_in(key, _KEYS)

    def at_client(split, x, yv, keys):
        client, slices = client_of(tier.of_slices(keys), split, key), Variables(x, *yv)
        q = work(client, slices)
        return (q.x, (q.y, q.v)), _bilevel.steps_of(client), client.f(*slices.params)

    def weigh(split):
        return Client(tier.problem, split, None).weights

    def zeros(like):
        return jax.tree.map(jnp.zeros_like, like)

    @fad.program
    def round(part):
        keys = fad.map(tier.keys(z, state.rounds, own), part)
        spread = keys[0], (keys[1], keys[1])
        levels = [
            (like, k, {"public": p})
            for like, k, p in zip((z.x, (z.y, z.v)), spread, tier.public, strict=True)
        ]
        x, yv = (fad.select(like, k, **public) for like, k, public in levels)
        q, steps, value = fad.map(at_client, part, x, yv, keys)
        lower, upper = fad.map(weigh, part)
        means = [
            fad.coverage_mean(d, k, zeros(like), weights=lower, **public)
            for d, (like, k, public) in zip(q, levels, strict=True)
        ]
        means += [
            fad.Coverage(fad.weighted_mean(number, weight), fad.sum(weight))
            for number, weight in ((steps, lower), (value, upper))
        ]
        if tier.problem.weighting == "uniform":  # the weights are 1 each
            counts = [means[0].weight, means[1].weight[0]]
        else:
            counts = _present((x, yv[0]), keys, z.params, lower, tier.public)
        return fad.Coverage(*zip(*means, strict=True)), counts

    return round(part)


def _present(slices: Any, keys: Any, like: Any, weights: Any, public: Any) -> list[Any]:
    """Return how many clients of positive weight have each coordinate of x and y.

    Nothing more is sent: weights come one by one, so that the server knows who counts.
    """

    def there(slices, weight):
        return jax.tree.map(
            lambda a: jnp.full(a.shape, weight > 0, jnp.float32), slices
        )

    held = fad.map(there, slices, weights)
    return [
        fad.deselect(h, k, level, wire=(), public=p)
        for h, k, level, p in zip(held, keys, like, public, strict=True)
    ]
