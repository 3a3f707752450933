"""A round of FedAvg in which clients train slices of the model that they can hold.

The places of a cohort are cut into tiers, one for each width. With ``S_i`` the slices
that client i's keys name of the global model x, ``w_i`` its weight, and a local model
of its tier's width,

    each client i:  z_i <- local steps from S_i x;    d_i = z_i - S_i x
    server, for each coordinate j that somebody has:
                    x_j <- x_j + eta sum_{i has j} w_i d_ij / sum_{i has j} w_i

What nobody has stays. Only slices travel. ``labels``: a client also gets no more of the
last layer than the columns of its own labels. The others are zero, as are then their
logits and gradients, and a column is averaged over the clients that have its label.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._labels import known_labels, last_layer, with_labels
from algorithms._pruned_coverage import uncovered, warn
from algorithms._ranges import check_range
from algorithms._server_step import Weighting, move, weigh
from fad import submodels

Choose = Callable[..., dict[str, jax.Array]]


class State(NamedTuple):
    """The server's state: the global model, and the number of rounds so far."""

    params: Any
    rounds: jax.Array


def submodel_fedavg(
    task: fad.data.Task,
    choose: Choose,
    *,
    widths: Sequence[float],
    client: optax.GradientTransformation,
    server_lr: float = 1.0,
    weighting: Weighting = "uniform",
    labels: bool = False,
    scaled: bool = False,
) -> fad.Algorithm:
    """Build FedAvg over sub-models.

    Args:
        task: The task, whose model comes in any width.
        choose: ``choose(units, kept, rounds, key) -> {group: [k]}``, the hidden units
            of one client, as of ``fad.submodels.Units.choose``.
        widths: The width of each tier's model.
        client: The clients' optimizer; it starts afresh every round.
        server_lr: The server step eta.
        weighting: Weigh clients by their examples, or all the same.
        labels: Whether clients leave out the labels that they do not have.
        scaled: Whether activations are divided by the width in training.

    Returns:
        The algorithm, for cohorts whose tiers are in the order of the widths. Its
        metrics are ``train_loss`` and ``uncovered``, the number of coordinates that
        nobody had, also by leaf but for the last layer's with ``labels``. It warns once
        of each such leaf.
    """
    units = units_of(task)
    model = jax.eval_shape(task.init, jax.random.key(0))
    head = last_layer(units, model, task.test["y"]) if labels else ""
    tiers, told = [], set()
    for width in widths:
        narrow, kept = task.at_width(width, scaled=scaled), units.kept(width)
        units.check(jax.eval_shape(narrow.init, jax.random.key(0)), kept)
        tiers.append((narrow.loss, functools.partial(choose, units, kept)))

    def init(key):
        return State(task.init(key), jnp.zeros((), jnp.int32))

    def step(state, cohort, key):
        parts, found = submodels.tiers(cohort, len(widths)), []
        for (loss, chosen), part in zip(tiers, parts, strict=True):

            def keys_of(batches, chosen=chosen):
                own = fad.local.client_key(key, batches.client)
                keys = units.keys(chosen(state.rounds, own))
                return with_labels(keys, model, head, batches) if head else keys

            def work(params, keys, batches, loss=loss):
                known = known_labels(loss, keys, head) if head else loss
                local = fad.local.train(params, batches, loss=known, optimizer=client)
                weight, _ = weigh(params, local.num_examples, weighting, "refuse")
                return local.delta, local.loss, weight

            found.append(_tier_round(state.params, part, keys_of, work, head))
        (delta, loss), (weight, _) = submodels.merged(found)
        params = move(state.params, delta, server_lr)
        bare = uncovered(weight, named=lambda path: not head or path[0].key != head)
        return State(params, state.rounds + 1), {"train_loss": loss} | bare

    return fad.Algorithm(init, step, check=lambda metrics: warn(metrics, told))


def _tier_round(
    params: Any, part: fad.AtClients, keys_of: Any, work: Any, head: str
) -> fad.Coverage:
    """Return the mean update and loss of the clients of one tier.

    The server knows all keys, but not those of a last layer ``head`` of own labels.
    """

    def split(tree):
        rest = {name: v for name, v in tree.items() if name != head} if head else tree
        return (rest, {head: tree[head]}) if head else (rest,)

    def join(parts):
        return {**parts[0], **parts[1]} if head else parts[0]

    def at_client(slices, keys, batches):
        delta, loss, weight = work(join(slices), join(keys), batches)
        return split(delta), loss, weight

    @fad.program
    def round(part):
        keys = fad.map(lambda batches: split(keys_of(batches)), part)
        levels = list(zip(split(params), keys, (True, False), strict=False))
        slices = [fad.select(p, k, public=public) for p, k, public in levels]
        delta, losses, weights = fad.map(at_client, slices, keys, part)
        means = [
            fad.coverage_mean(
                d, k, jax.tree.map(jnp.zeros_like, p), weights=weights, public=public
            )
            for d, (p, k, public) in zip(delta, levels, strict=True)
        ]
        mean, weight = (join(both) for both in zip(*means, strict=True))
        loss = fad.weighted_mean(losses, weights)
        return fad.Coverage((mean, loss), (weight, fad.sum(weights)))

    return round(part)


def units_of(task: fad.data.Task) -> submodels.Units:
    """Return the hidden units of a task's model."""
    rows = {name: a[:2] for name, a in task.test.items()}
    return submodels.find(task.loss, jax.eval_shape(task.init, jax.random.key(0)), rows)


@dataclass(frozen=True)
class BaseConfig:
    """The options of FedAvg over sub-models."""

    widths: tuple[float, ...] = (1.0, 0.5, 0.25)
    client_lr: float = 0.1
    client_momentum: float = 0.0
    server_lr: float = 1.0
    weighting: Weighting = "uniform"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "client_lr", "server_lr")
        check_range(self, "[0, 1)", "client_momentum")
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(f"widths: expected some in (0, 1], got {self.widths!r}")

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``submodel_fedavg``."""
        options = dict(vars(self))
        lr, momentum = options.pop("client_lr"), options.pop("client_momentum")
        return options | {"client": optax.sgd(lr, momentum=momentum or None)}
