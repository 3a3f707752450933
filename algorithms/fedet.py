"""Fed-ET: small models at the clients teach a larger one at the server.

Cho et al., "Heterogeneous Ensemble Knowledge Transfer for Training Large Models in
Federated Learning", IJCAI 2022 (section 3). Each width of the clients' models is a tier
with a model x^a; the server's model x has the width 1. Of a public example u, client k
with logits z_k(u) is the surer the more they differ:

    client k of a:  x_k <- local steps from x^a,    v_k = variance of z_k over classes
    server:         x^a <- sum_k n_k x_k / sum_k n_k               over the clients of a
                    z = sum_k v_k z_k / sum_k v_k                  weighted consensus
                    y = argmax z                                   pseudo-label
                    D = {k: argmax z_k != y}                       who disagrees
                    z_D = sum_(k in D) v_k z_k / sum_(k in D) v_k  diversity
                    N steps of Adam on public examples, on x's
                    cross-entropy of y  +  lam KL(softmax(z_D) | softmax of x)

Representation, the layers before the last one, goes from the x^a to x before the steps
and back after them, where a layer has the same shape in both. Between widths none has
but that of a width 1, so that the other x^a learn from their clients alone.

Ours: the paper's server evaluates the uploaded models; here clients do and the server
has sums alone, at the price of a second round, of P numbers down for y and P (C + 1)
up for z_D. Where all agree there is no second term. lam = 0.1 is no value of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._distill import Distillation, divergence, public_of
from algorithms._distill_config import BaseConfig
from algorithms._distill_round import ensemble_round
from algorithms._ranges import check_range
from algorithms._server_step import Weighting
from algorithms._submodel_round import head_of
from fad import submodels


class State(NamedTuple):
    """The server's state."""

    params: Any  # the server's model
    small: tuple[Any, ...]  # of each width, the clients' mean model
    rounds: jax.Array


def fedet(
    task: fad.data.Task,
    *,
    widths: Sequence[float],
    client: optax.GradientTransformation,
    distillation: Distillation,
    diversity: Any = 0.1,
    weighting: Weighting = "examples",
) -> fad.Algorithm:
    """Build Fed-ET.

    Args:
        task: The task, with public examples (``validation``) and models of any width.
        widths: The width of each tier's model.
        client: The clients' optimizer; it starts afresh every round.
        distillation: The server's.
        diversity: The weight of the clients that disagree, lam.
        weighting: Weigh a tier's clients by their examples, or all the same.

    Returns:
        The algorithm, for cohorts whose tiers are in the order of the widths. Its
        metrics are ``train_loss``, ``distill_loss``, before each step of distillation,
        and ``disagreeing``, the share of the public examples that clients of positive
        variance disagree on.
    """
    public = public_of(task, distillation)
    tasks = [task.at_width(width) for width in widths]
    rounds = [ensemble_round(public, t.loss, client, weighting) for t in tasks]
    head = _head(task) if 1 in widths else ""

    def init(key):
        small = tuple(t.init(key) for t in tasks)
        return State(task.init(key), small, jnp.zeros((), jnp.int32))

    def step(state, cohort, key):
        del key
        rows, parts = public.rows(state.rounds), submodels.tiers(cohort, len(tasks))
        found = [
            train(own, part, rows)
            for train, own, part in zip(rounds, state.small, parts, strict=True)
        ]
        label, z, some = _consensus([tier.said for tier in found])

        def objective(params, index):
            own = {name: x[index] for name, x in rows.items()}
            own = public.log_probabilities(task.loss, params, own)
            miss = -jnp.take_along_axis(own, label[index][:, None], axis=1)[:, 0]
            apart = divergence(jax.nn.log_softmax(z[index]), own)
            lam = jnp.asarray(diversity, own.dtype)
            return miss + lam * jnp.where(some[index], apart, 0)

        loss, total = submodels.merged([tier.loss for tier in found])
        start = state.params
        for tier in found:
            start = _representation(tier.params, start, head)
        server = public.distil(start, objective, total > 0)
        small = [_representation(server.params, tier.params, head) for tier in found]
        metrics = {"train_loss": loss, "distill_loss": server.loss}
        metrics["disagreeing"] = jnp.mean(some, dtype=loss.dtype)
        return State(server.params, tuple(small), state.rounds + 1), metrics

    return fad.Algorithm(init, step)


def _consensus(
    said: Sequence[fad.AtClients],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the pseudo-labels ``[P]``, ``z_D [P, C]``, and whether there is a D."""
    z, _ = submodels.merged([_weighted(each) for each in said])
    label = z.argmax(axis=1)
    z, variance = submodels.merged([_weighted(each, label) for each in said])
    return label, z, variance[:, 0] > 0


def _weighted(said: fad.AtClients, label: jax.Array | None = None) -> fad.Coverage:
    """Return the mean logits by their variances, of those with another label than."""

    def work(said):
        logits, there = said
        weight = jnp.var(logits, axis=1, keepdims=True)
        counts = there > 0
        if label is not None:
            counts &= (logits.argmax(axis=1) != label)[:, None]
        weight = jnp.where(counts, weight, 0)
        return jnp.where(counts, weight * logits, 0), weight

    @fad.program
    def sums(said):
        return fad.sum(fad.map(work, said))

    total, weight = sums(said)
    safe = jnp.where(weight > 0, weight, jnp.ones_like(weight))
    return fad.Coverage(total / safe, weight)


def _head(task: fad.data.Task) -> str:
    """Return the name of the last layer, which is no representation."""
    try:
        return head_of(task)
    except fad.FadError as error:
        raise fad.ConfigError(
            "fedet: a tier of the width 1.0 shares all layers but the last with the "
            "server, and the model has no one last layer, a bias without hidden "
            "units. Leave the width 1.0 out of widths."
        ) from error


def _representation(source: Any, target: Any, head: str) -> Any:
    """Return a model with all layers but the last of another, where shapes agree."""
    if not head:
        return target

    def shapes(layer: Any) -> Any:
        return jax.tree.map(jnp.shape, layer)

    def goes(name: str, layer: Any) -> bool:
        return name != head and shapes(source.get(name)) == shapes(layer)

    return {name: source[name] if goes(name, x) else x for name, x in target.items()}


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of Fed-ET; diversity is lam."""

    widths: tuple[float, ...] = (0.5, 0.25)
    weighting: Weighting = "examples"
    diversity: float = 0.1

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "[0, inf)", "diversity")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    more = {"diversity": config.diversity, "weighting": config.weighting}
    return config.algorithm(fedet, task, **more)
