"""FedHyper: steps that follow the inner products of successive mean updates.

Wang, Wang and Li, "FedHyper: A Universal and Robust Learning Rate Scheduler for
Federated Learning with Hypergradient Descent", ICLR 2024. Round t, from the model x,
with the mean update D = mean (x_i - x) and that of the round before, D':

    global (FedHyper-G):   eta <- clip(eta + <D, D'>, 1 / bound, bound)
                           x   <- x + eta * D
    local (FedHyper-SL):   x   <- x + eta * D
                           m   <- clip(m + <D, D'>, 1 / bound, bound)
                           the clients' next step is m * client_lr

Certain are the additive rule, the raw inner product of the mean updates and that they
are clipped: the authors' code (github.com/ATP-1010/FedHyper) has them. It clips eta to
[0.2, 5] and m to [0.1, 10], and sets the local steps back each round, so that there
FedHyper-SL does nothing. The paper's bounds, 3 for eta and 10 for m, are known at
second hand. Both are absolute: a server step that starts outside is clipped at the
second round; ``bound = inf`` clips at zero alone. ``rate`` is 1 in the code. Left out
is FedHyper-CL, steps that each client adapts within a round: its formula in the paper,
known at second hand, is not that of the code.

The bias is that of ``hypergradient_descent``, whose additive rule FedHyper-G clips.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._ranges import check_range
from algorithms.fedavg import Weighting, average
from algorithms.hypergradient_descent import dot, move

Scheduler = Literal["global", "local"]


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    update: Any  # D of the last round, zero before the first
    lr: Any  # eta
    client_scale: Any  # the clients' step over that of the config, m


def fedhyper(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    client: Callable[[jax.Array], optax.GradientTransformation],
    scheduler: Scheduler = "global",
    server_lr: float = 1.0,
    rate: float = 1.0,
    bound: float = 3.0,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedAvg with FedHyper's steps.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        client: ``client(m) -> optimizer`` of the clients, m times their step.
        scheduler: Whether the ``global`` step eta or the ``local`` one is adapted.
        server_lr: Where eta starts.
        rate: Times the inner product.
        bound: The adapted step stays within ``1 / bound .. bound``.
        weighting: Weigh clients by their examples, or all the same.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        ``server_lr`` and ``client_scale``, eta and m of this round, and
        ``hypergradient``, ``-<D, D'>``.
    """

    def init(key):
        params = init_params(key)
        one = jnp.ones((), jnp.result_type(float))
        still = jax.tree.map(jnp.zeros_like, params)
        return State(params, still, server_lr * one, one)

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            optimizer = client(state.client_scale)
            return fad.local.train(
                state.params, batches, loss=loss, optimizer=optimizer, key=own
            )

        local = fad.map(client_work, cohort)
        delta, train_loss = average(
            (local.delta, local.loss), local.num_examples, weighting
        )
        product = dot(delta, state.update)
        first = dot(state.update, state.update) == 0

        def adapt(lr):
            new = jnp.clip(lr + rate * product.astype(lr.dtype), 1 / bound, bound)
            return jnp.where(first, lr, new)

        lr, next_scale = state.lr, state.client_scale
        if scheduler == "global":
            lr = adapt(lr)
        else:
            next_scale = adapt(next_scale)
        params = move(state.params, delta, lr)
        names = ("train_loss", "server_lr", "client_scale", "hypergradient")
        values = (train_loss, lr, state.client_scale, -product)
        metrics = dict(zip(names, values, strict=True))
        return State(params, delta, lr, next_scale), metrics

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config(fedavg.BaseConfig):
    """The options of FedAvg, and of the scheduler; the server optimizer is none."""

    scheduler: Scheduler = "global"
    rate: float = 1.0
    bound: float = 3.0

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if self.server != "sgd":
            raise ValueError(
                f'server: expected "sgd", the step is FedHyper\'s, got {self.server!r}'
            )
        check_range(self, "[0, inf)", "rate")
        check_range(self, "(1, inf]", "bound")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""

    def client(scale):
        lr = scale * config.client_lr
        return optax.sgd(lr, momentum=config.client_momentum or None)

    return fedhyper(
        task.loss,
        task.init,
        client=client,
        scheduler=config.scheduler,
        server_lr=config.server_lr,
        rate=config.rate,
        bound=config.bound,
        weighting=config.weighting,
    )
