"""Scaffnew: as many local steps as a coin allows, towards the exact optimum.

Mishchenko et al., "ProxSkip: Yes! Local Gradient Steps Provably Lead to Communication
Acceleration! Finally!", ICML 2022 (Algorithm 2). One local step g at a time:

    each client i:       xh_i <- x_i - g (grad f_i(x_i) - h_i),  sum_i h_i = 0
    with probability p:  x_i <- mean_j xh_j,  h_i <- h_i + p/g (x_i - xh_i)
    otherwise:           x_i <- xh_i

A round is the local steps until the coin falls, one geometric draw of the round's key
for all clients, then the mean x. It rests at the optimum of mean_i f_i, h_i at
grad f_i(x); with strong convexity, whole gradients and g <= 1/L the way there is
linear, in the fewest rounds for p = sqrt(mu g). p = 1 is gradient descent. New here:

- After ``max_steps`` the coin falls in any case, and h_i moves by the same p/g.
- All take the same steps, from the first batch again where a client has fewer.
- h_i gets its mean with the next round's model, which saves a message.
- A client without examples, or left out, keeps its h_i and is not in the mean; the sum
  stays 0. Smaller cohorts and empty places are refused: it takes all clients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import _everyone as everyone
from algorithms._ranges import check_range
from algorithms._taking_part import Nonfinite, cohort_metrics, takes_part, where
from algorithms.fedavg import State


class Memory(NamedTuple):
    """What a client keeps: h_i, or ``h_i - p/g xh_i`` if it still waits for a mean."""

    kept: Any
    waits: jax.Array


def scaffnew(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    num_clients: int,
    client_lr: Any,
    p: Any,
    max_steps: int,
    nonfinite: Nonfinite = "refuse",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build Scaffnew for ``num_clients``, all of whom are in every cohort.

    Returns:
        The algorithm; its metrics are ``train_loss``, ``excluded_clients``,
        ``local_steps`` and ``absent_clients``, which end the run.
    """

    def fresh(state):
        return Memory(jax.tree.map(jnp.zeros_like, state.params), jnp.array(False))

    @fad.program
    def step(state, cohort, key, memory):
        absent = everyone.absent("scaffnew", cohort, num_clients)
        coin, key = jax.random.split(key)
        drawn = jax.random.geometric(coin, p, dtype=jnp.int32)
        x, steps = state.params, jnp.minimum(drawn, max_steps)

        def client_work(batches, own):
            noise = fad.local.client_key(key, batches.client) if random_loss else None
            taken = fad.local.take_steps(batches, max_steps)
            early = jnp.arange(max_steps)[:, None] < steps
            taken = taken._replace(mask=taken.mask & early)
            h = where(own.waits, _plus(own.kept, p / client_lr, x), own.kept)
            shift = optax.stateless(lambda g, _: jax.tree.map(jnp.subtract, g, h))
            sgd = optax.chain(shift, optax.sgd(client_lr))
            local = fad.local.train(x, taken, loss=loss, optimizer=sgd, key=noise)
            sent = local.delta, local.loss
            counts, left_out = takes_part(sent, local.num_examples, nonfinite)
            kept = where(counts, _plus(h, -p / client_lr, local.params), h)
            return sent, counts, left_out, Memory(kept, counts)

        sent, counts, left_out, memory = fad.map(client_work, cohort, memory)
        params = jax.tree.map(jnp.add, x, fad.weighted_mean(sent[0], counts))
        metrics = cohort_metrics(sent[1], counts, left_out) | {"local_steps": steps}
        metrics["absent_clients"] = absent
        return state._replace(params=params), metrics, memory

    return fad.Algorithm(
        lambda k: State(init_params(k), ()), step, everyone.check, fresh
    )


def _plus(a: Any, by: Any, b: Any) -> Any:
    return jax.tree.map(lambda u, v: u + jnp.asarray(by, v.dtype) * v, a, b)


@dataclass(frozen=True)
class Config:
    """The options of Scaffnew."""

    client_lr: float = 0.1
    p: float = 0.2
    max_steps: int = 20
    nonfinite: Nonfinite = "refuse"

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "client_lr")
        check_range(self, "(0, 1]", "p")
        check_range(self, "[1, inf)", "max_steps")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    n, options = task.train.num_clients, vars(config)
    return scaffnew(task.loss, task.init, num_clients=n, **options)
