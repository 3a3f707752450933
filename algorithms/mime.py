"""Mime and MimeLite: clients take the server optimizer's steps, its state frozen.

Karimireddy et al., "Breaking the Centralized Barrier for Cross-Device Federated
Learning", NeurIPS 2021 (Algorithm 1). Round t, from the model x and the state s:

    each client i:  g_i = grad f_i(x), over its rows of this round
    server:         c = mean_i g_i
    each client i:  y <- y - lr U(grad f_i(y; b) - grad f_i(x; b) + c, s)    Mime
                    y <- y - lr U(grad f_i(y; b), s)                         MimeLite
                    from x to y_i, over its batches b
    server:         x <- x + eta * mean_i (y_i - x),   s <- V(c, s)

U is an optax optimizer's update from s, and V its new state. So Adam's U has its own
gradient in the denominator too, where the paper's has s alone, and momentum adds g, not
(1 - b1) g. Mime takes two rounds of the same clients; MimeLite, without c there, one.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import optax

import fad
from algorithms import _frozen
from algorithms._optimizers import ServerOptimizer, scaled, server_optimizer
from algorithms._ranges import check_range
from algorithms._server_step import move
from algorithms._taking_part import Nonfinite, cohort_metrics, takes_part
from algorithms.fedavg import State


def mime(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    base: optax.GradientTransformation,
    client_lr: float,
    server_lr: float = 1.0,
    lite: bool = False,
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build Mime or MimeLite.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        base: The optimizer of U and V, with a step of one.
        client_lr: The clients' step lr.
        server_lr: The server step eta, 1 in the paper.
        lite: Whether it is MimeLite.
        nonfinite: Whether to ``refuse`` or ``exclude`` what is not finite.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss`` and ``excluded_clients``.
    """
    base = optax.chain(base, scaled(client_lr))

    @fad.program
    def step(state, cohort, key):
        def options(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            return {"loss": loss, "key": own}

        def full_gradient(x, batches):
            whole = jax.value_and_grad(fad.local.evaluate, has_aux=True)
            (value, n), g = whole(x, batches, **options(batches))
            return g, value, takes_part((g, value), n, nonfinite)[0]

        def train(x, batches, value, counts):
            frozen = {"optimizer": base, "state": state.server, "correction": c}
            local = _frozen.train(x, batches, **frozen, **options(batches))
            n, seen = local.num_examples, local.loss - (0 if lite else value)
            counts &= takes_part((local.delta, seen), n, nonfinite)[0]
            return local.delta, seen, counts, (n > 0) & ~counts

        x = fad.broadcast(state.params)
        gradients, values, counts = fad.map(full_gradient, x, cohort)
        c: Any = None if lite else fad.weighted_mean(gradients, counts)
        deltas, losses, counts, left_out = fad.map(train, x, cohort, values, counts)
        mean = fad.weighted_mean(gradients, counts) if lite else c
        _, memory = base.update(mean, state.server, state.params)
        params = move(state.params, fad.weighted_mean(deltas, counts), server_lr)
        return State(params, memory), cohort_metrics(losses, counts, left_out)

    def init(key):
        params = init_params(key)
        return State(params, base.init(params))

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config:
    """The options of Mime and MimeLite, and of the optimizer of U and V."""

    base: ServerOptimizer = "momentum"
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-3
    client_lr: float = 0.1
    server_lr: float = 1.0
    lite: bool = False
    nonfinite: Nonfinite = "refuse"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "eps", "client_lr", "server_lr")
        check_range(self, "[0, 1)", "b1", "b2")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    options = asdict(config)
    moments = {name: options.pop(name) for name in ("b1", "b2", "eps")}
    base = server_optimizer(options.pop("base"), **moments)
    return mime(task.loss, task.init, base=base, **options)
