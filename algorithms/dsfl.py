"""DS-FL: clients exchange what their models say of an open set, and no models.

Itahara et al., "Distillation-Based Semi-Supervised Federated Learning for
Communication-Efficient Collaborative Training with Non-IID Private Data", IEEE
Transactions on Mobile Computing 2021. Client k has a model w_k of its own, of its
tier's width, and the server w. Round t has the public examples o_t:

    client k:  w_k <- steps on the cross-entropy of s_(t-1) and w_k on o_(t-1)
               w_k <- local steps on its own data
               p_k = softmax(logits of w_k) on o_t
    server:    s_t = softmax(mean_k p_k / T)       entropy reduction, T = 0.1
               w <- steps on the cross-entropy of s_t and w on o_t

Only the p_k, in a sum, and s go over the wire. In the paper all clients get s_t at the
end of round t; here a client does at the start of its next one, the newest, which is
the same for clients that take part in all rounds. Its mean is over all clients alike.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._distill import Distillation, Loss, Public, at_clients, public_of
from algorithms._distill_config import BaseConfig
from algorithms._ranges import check_range
from algorithms._taking_part import where
from fad import submodels


class State(NamedTuple):
    """The server's state."""

    params: Any  # the server's model w
    first: tuple[Any, ...]  # of each width, the model that a client begins with
    soft: jax.Array  # [P, C], the labels s of the last round
    known: jax.Array  # whether there are such
    rounds: jax.Array


def dsfl(
    task: fad.data.Task,
    *,
    widths: Sequence[float],
    client: optax.GradientTransformation,
    distillation: Distillation,
    temperature: float = 0.1,
) -> fad.Algorithm:
    """Build DS-FL.

    Args:
        task: The task, with public examples (``validation``) and models of any width.
        widths: The width of each tier's models; the server's has the width 1.
        client: The clients' optimizer for their own data; it starts afresh every round.
        distillation: The clients' and the server's.
        temperature: What the mean probabilities are divided by, T; small is sharp.

    Returns:
        The algorithm, for cohorts whose tiers are in the order of the widths. A client
        keeps a model of each width, of which it uses its tier's. The metrics are
        ``train_loss`` and ``distill_loss``, the server's cross-entropy before each of
        its steps.
    """
    public = public_of(task, distillation)
    tasks = [task.at_width(width) for width in widths]

    def init(key):
        first = tuple(t.init(key) for t in tasks)
        params, zero = task.init(key), jnp.zeros((), jnp.int32)
        said = functools.partial(public.log_probabilities, task.loss)
        soft = jax.eval_shape(said, params, public.rows(zero))
        soft = jnp.zeros(soft.shape, soft.dtype)
        return State(params, first, soft, jnp.zeros((), bool), zero)

    def step(state, cohort, key, memory):
        del key
        before, now = public.rows(state.rounds - 1), public.rows(state.rounds)
        parts = submodels.tiers(cohort, len(tasks))
        owned = submodels.tiers(memory, len(tasks))
        found, kept = [], []
        for i, (part, own) in enumerate(zip(parts, owned, strict=True)):
            train = _tier_round(public, tasks[i].loss, client, state, i)
            mean, models = train(part, own, at_clients((before, now), part))
            found.append(mean)
            kept.append(models)
        (said, loss), total = submodels.merged(found)
        there = total[0] > 0
        soft = jax.nn.softmax(said / temperature)
        soft = jnp.where(there, soft, state.soft)
        server = _learn(public, task.loss, state.params, now, soft, there)
        state = State(server.params, state.first, soft, there, state.rounds + 1)
        metrics = {"train_loss": loss, "distill_loss": server.loss}
        return state, metrics, jax.tree.map(_together, *kept)

    return fad.Algorithm(init, step, init_client=lambda state: state.first)


def _learn(public, loss, params, rows, soft, there) -> fad.local.LocalResult:
    """Distil soft labels on some rows into a model."""

    def objective(params, index):
        some = {name: x[index] for name, x in rows.items()}
        own = public.log_probabilities(loss, params, some)
        return -jnp.sum(soft[index] * own, axis=1)

    return public.distil(params, objective, there)


def _tier_round(
    public: Public,
    loss: Loss,
    client: optax.GradientTransformation,
    state: State,
    tier: int,
) -> Callable[..., tuple[fad.Coverage, fad.AtClients]]:
    """Return a tier's round: the means, and the clients' models of all widths."""

    def work(batches, models, rows):
        (before, now), own = rows, models[tier]
        start = _learn(public, loss, own, before, state.soft, state.known).params
        local = fad.local.train(start, batches, loss=loss, optimizer=client)
        there = local.num_examples > 0
        new = where(there, local.params, own)
        said = jnp.exp(public.log_probabilities(loss, new, now))
        models = (*models[:tier], new, *models[tier + 1 :])
        return (said, local.loss), there.astype(jnp.float32), models

    @fad.program
    def round(part, models, rows):
        sent, there, models = fad.map(work, part, models, rows)
        total = fad.sum(there)
        return fad.Coverage(fad.weighted_mean(sent, there), (total, total)), models

    return round


def _together(*parts: jax.Array) -> jax.Array:
    """Join the tiers' arrays: each at its places between zeros, all added up."""
    size, n = len(parts[0]), sum(map(len, parts))

    def placed(i: int, x: jax.Array) -> jax.Array:
        around = (i * size, n - (i + 1) * size)
        return jnp.pad(x, [around] + [(0, 0)] * (x.ndim - 1))

    return functools.reduce(jnp.add, [placed(i, x) for i, x in enumerate(parts)])


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of DS-FL, which distils with SGD."""

    distill_lr: float = 0.1
    temperature: float = 0.1

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, inf)", "temperature")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    distillation, t = config.distillation(optax.sgd), config.temperature
    return config.algorithm(dsfl, task, distillation=distillation, temperature=t)
