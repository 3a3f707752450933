"""SCAFFOLD: control variates against the drift of local steps.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020 (Algorithm 1, Equations 3 to 5). The server keeps c, a client c_i, zero at
first. A round with the cohort S, of N clients in all, from the global model x:

    each client i:  y_i <- x, K times y_i <- y_i - client_lr (grad l_i(y_i) - c_i + c)
                    c_i+ = grad l_i(x)                             gradient (option I)
                    c_i+ = c_i - c + (x - y_i) / (K client_lr)     steps (option II)
    server:         x <- x + eta * mean_S (y_i - x)
                    c <- c + |S|/N * mean_S (c_i+ - c_i),    c_i <- c_i+

Option I takes one more pass over this round's rows; option II is the mean gradient of a
client's own K steps. Clients weigh the same. A round sends twice what FedAvg's does.
One client in all makes it FedAvg; all clients with one step, SGD on the mean loss.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._ranges import check_range
from algorithms._taking_part import Nonfinite, cohort_metrics, takes_part, where
from algorithms.hypergradient_descent import dot


class State(NamedTuple):
    """The server's state: the global model x and its control variate c."""

    params: Any
    control: Any


def scaffold(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    num_clients: int,
    client_lr: float,
    server_lr: float = 1.0,
    option: Literal["gradient", "steps"] = "steps",
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build SCAFFOLD; a client's memory is its c_i.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        num_clients: N, the clients of the federation that have examples.
        client_lr: The clients' step.
        server_lr: The server step eta.
        option: What c_i becomes: the ``gradient`` at x, or the mean over the ``steps``.
        nonfinite: ``refuse`` or ``exclude`` an update that is not finite.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        ``excluded_clients`` and ``control_square``, ``|c|^2``.
    """

    def init(key):
        params = init_params(key)
        return State(params, jax.tree.map(jnp.zeros_like, params))

    @fad.program
    def step(state, cohort, key, memory):
        def client_work(batches, c_i):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            shift = jax.tree.map(jnp.subtract, state.control, c_i)
            corrected = optax.stateless(lambda g, _: jax.tree.map(jnp.add, g, shift))
            client = optax.chain(corrected, optax.sgd(client_lr))
            options = {"loss": loss, "key": own}
            local = fad.local.train(state.params, batches, optimizer=client, **options)
            if option == "gradient":
                derive = jax.grad(fad.local.evaluate, has_aux=True)
                new, _ = derive(state.params, batches, **options)
            else:
                k = jnp.maximum(local.num_steps, 1)
                mean = jax.tree.map(lambda d: d / k.astype(d.dtype), local.delta)
                new = jax.tree.map(lambda d, s: -d / client_lr - s, mean, shift)
            update = local.delta, jax.tree.map(jnp.subtract, new, c_i), local.loss
            counts, excluded = takes_part(update, local.num_examples, nonfinite)
            return where(counts, update, 0.0), counts, excluded, where(counts, new, c_i)

        update, counts, excluded, memory = fad.map(client_work, cohort, memory)
        delta, change, losses = update
        delta, total = fad.weighted_mean(delta, counts), fad.sum(change)
        params = jax.tree.map(lambda x, d: x + server_lr * d, state.params, delta)
        control = jax.tree.map(lambda c, d: c + d / num_clients, state.control, total)
        metrics = cohort_metrics(losses, counts, excluded)
        metrics["control_square"] = dot(control, control)
        return State(params, control), metrics, memory

    return fad.Algorithm(init, step, init_client=lambda state: state.control)


@dataclass(frozen=True)
class Config:
    """The options of SCAFFOLD."""

    client_lr: float = 0.1
    server_lr: float = 1.0
    option: Literal["gradient", "steps"] = "steps"
    nonfinite: Nonfinite = "refuse"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "client_lr", "server_lr")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    num_clients = int((task.train.sizes > 0).sum())
    return scaffold(task.loss, task.init, num_clients=num_clients, **asdict(config))
