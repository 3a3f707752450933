"""FedBuff: asynchronous clients, whose updates a buffer of K collects.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022
(Algorithm 1). A step is one server update, its cohort the K clients that fill the
buffer: the clock is whatever draws the cohorts. A client trains from the model y_i that
it was last sent, of version v_i, until it comes. At first all have the first model.

    each client i:  D_i = (y_i after a few local steps) - y_i,   s_i = t - v_i
    server:         x <- x + eta * sum_i w(s_i) D_i / K,   w(s) = (1 + s)^-a
    each client i:  y_i <- x,   v_i <- t + 1               it is sent the newest model

So the staleness s_i counts the server updates since i last came; the paper's clients
may also start between two. What is older than ``max_staleness`` is dropped and not in
K; its client, as one left out, gets the newest model all the same.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._ranges import check_range
from algorithms._server_step import move
from algorithms._taking_part import Nonfinite, cohort_metrics, takes_part, where


class State(NamedTuple):
    """The server's model, or in a client's memory the one it was last sent."""

    params: Any
    version: Any  # the server updates that made it


def fedbuff(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    client: optax.GradientTransformation,
    server_lr: float = 1.0,
    exponent: float = 0.5,
    divisor: Literal["buffer", "weights"] = "buffer",
    max_staleness: int | None = None,
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedBuff.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        client: The clients' optimizer, afresh every time.
        server_lr: The server step eta.
        exponent: a, how much less a stale update counts; 1/2 in the paper.
        divisor: Divide by the ``buffer``'s size K, or by the sum of the ``weights``.
        max_staleness: The oldest that counts; None, as in the paper: all do.
        nonfinite: Whether to ``refuse`` or ``exclude`` what is not finite.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        It; it also shows the mean ``staleness`` and ``dropped_clients``.
    """

    @fad.program
    def step(state, cohort, key, memory):
        def train(batches, sent):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            options = {"loss": loss, "optimizer": client, "key": own}
            local = fad.local.train(sent.params, batches, **options)
            stale = (state.version - sent.version).astype(jnp.result_type(float))
            found = local.delta, local.loss
            came, left_out = takes_part(found, local.num_examples, nonfinite)
            kept = came if max_staleness is None else came & (stale <= max_staleness)
            weight = where(kept, (1 + stale) ** -exponent, 0)
            return found, weight, stale, (kept, came, left_out, came | left_out)

        found, weights, stale, who = fad.map(train, cohort, memory)
        kept, came, left_out, there = who
        delta, moved = fad.weighted_mean(found[0], weights), fad.sum(kept) > 0
        scale = fad.weighted_mean(weights, kept) if divisor == "buffer" else 1
        x = move(state.params, delta, server_lr * scale)
        state = State(x, state.version + moved.astype(jnp.int32))
        metrics = cohort_metrics(found[1], came, left_out)
        metrics["staleness"] = fad.weighted_mean(stale, came)
        metrics["dropped_clients"] = fad.sum(came) - fad.sum(kept)
        memory = fad.map(lambda t, old: where(t, state, old), there, memory)
        return state, metrics, memory

    def init(key):
        return State(init_params(key), jnp.zeros((), jnp.int32))

    return fad.Algorithm(init, step, None, lambda state: state)


@dataclass(frozen=True)
class Config:
    """The options of FedBuff."""

    server_lr: float = 1.0
    client_lr: float = 0.1
    exponent: float = 0.5
    divisor: Literal["buffer", "weights"] = "buffer"
    max_staleness: int | None = None
    nonfinite: Nonfinite = "refuse"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "server_lr", "client_lr")
        bounded = ("max_staleness",) if self.max_staleness is not None else ()
        check_range(self, "[0, inf)", "exponent", *bounded)


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    options = asdict(config)
    options["client"] = optax.sgd(options.pop("client_lr"))
    return fedbuff(task.loss, task.init, **options)
