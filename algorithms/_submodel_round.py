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
What clients keep (``Own``) may say which units they get; then they tell the server.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._client_config import ClientConfig
from algorithms._labels import known_labels, last_layer, with_labels
from algorithms._pruned_coverage import uncovered, warn
from algorithms._ranges import check_range
from algorithms._server_step import Weighting, move, weigh
from algorithms._tier_round import tier_round
from fad import submodels

Choose = Callable[..., dict[str, jax.Array]]


class State(NamedTuple):
    """The server's state: the global model, and the number of rounds so far."""

    params: Any
    rounds: jax.Array


class Own(NamedTuple):
    """What clients keep from round to round, to choose their own units by.

    Attributes:
        init: ``init(state) -> memory``, of a client before its first round.
        refresh: ``refresh(state, cohort, key, memory) -> memory``, for all tiers,
            before units are chosen by it.
        more: ``more(state, key, tier) -> more``, that of ``tier_round``, whose clients
            have the new memory and the one from before; None if they add nothing.
    """

    init: Callable[[Any], Any]
    refresh: Callable[..., Any]
    more: Callable[..., Any] | None = None


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
    own: Own | None = None,
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
        own: What clients keep; ``choose`` gets a client's memory as last argument then.

    Returns:
        The algorithm, for cohorts whose tiers are in the order of the widths. Its
        metrics are ``train_loss`` and ``uncovered``, the number of coordinates that
        nobody had, also by leaf but for the last layer's with ``labels``. It warns once
        of each such leaf.
    """
    units, head = units_of(task), head_of(task) if labels else ""
    model = jax.eval_shape(task.init, jax.random.key(0))
    narrow = [task.at_width(width, scaled=scaled) for width in widths]
    tiers, told = _tiers(narrow, units, choose, widths), set()

    def init(key):
        return State(task.init(key), jnp.zeros((), jnp.int32))

    def round(state, cohort, key, kept):
        parts, found = submodels.tiers(cohort, len(widths)), []
        mine = zip(*(submodels.tiers(x, len(widths)) for x in kept), strict=True)
        mine = list(mine) or [()] * len(widths)
        for t, (loss, chosen) in enumerate(tiers):

            def keys_of(batches, *mine, chosen=chosen):
                drawn = fad.local.client_key(key, batches.client)
                keys = units.keys(chosen(state.rounds, drawn, *mine[:1]))
                return with_labels(keys, model, head, batches) if head else keys

            def work(params, keys, batches, loss=loss):
                if head:
                    loss = known_labels(loss, keys[head]["bias"][0] >= 0, head)
                local = fad.local.train(params, batches, loss=loss, optimizer=client)
                weight, _ = weigh(params, local.num_examples, weighting, "refuse")
                return local.delta, local.loss, weight

            more = own and own.more and own.more(state, key, t)
            options = {"head": head, "own": mine[t], "more": more}
            found.append(tier_round(state.params, parts[t], keys_of, work, **options))
        return submodels.merged(found)

    def step(state, cohort, key, *memory):
        kept = memory
        if own is not None:
            kept = (own.refresh(state, cohort, key, *memory), *memory)
        found = round(state, cohort, key, kept)
        return *_server(state, found, server_lr, head), *kept[:1]

    first = own and own.init
    return fad.Algorithm(init, step, lambda metrics: warn(metrics, told), first)


def _tiers(
    narrow: Sequence[fad.data.Task],
    units: submodels.Units,
    choose: Choose,
    widths: Sequence[float],
) -> list[tuple[Callable[..., Any], Choose]]:
    """Return each tier's loss, and how its clients choose."""
    tiers = []
    for task, width in zip(narrow, widths, strict=True):
        kept = units.kept(width)
        units.check(jax.eval_shape(task.init, jax.random.key(0)), kept)
        tiers.append((task.loss, functools.partial(choose, units, kept)))
    return tiers


def _server(
    state: State, found: fad.Coverage, lr: float, head: str
) -> tuple[State, dict[str, jax.Array]]:
    """Return the server's state and the metrics, from the means of all tiers."""
    (delta, loss, *dense), (weight, *_) = found
    params = move(state.params, delta, lr)
    for added in dense:
        params = move(params, added, lr)
    bare = uncovered(weight, named=lambda path: not head or path[0].key != head)
    return State(params, state.rounds + 1), {"train_loss": loss} | bare


def units_of(task: fad.data.Task) -> submodels.Units:
    """Return the hidden units of a task's model."""
    rows = {name: a[:2] for name, a in task.test.items()}
    return submodels.find(task.loss, jax.eval_shape(task.init, jax.random.key(0)), rows)


def head_of(task: fad.data.Task) -> str:
    """Return the name of the last layer of a task's model."""
    model = jax.eval_shape(task.init, jax.random.key(0))
    return last_layer(units_of(task), model, task.test["y"])


@dataclass(frozen=True)
class BaseConfig(ClientConfig):
    """The options of FedAvg over sub-models."""

    widths: tuple[float, ...] = (1.0, 0.5, 0.25)
    server_lr: float = 1.0
    weighting: Weighting = "uniform"

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, inf)", "server_lr")
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(f"widths: expected some in (0, 1], got {self.widths!r}")
