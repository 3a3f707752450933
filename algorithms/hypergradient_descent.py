"""Hypergradient descent on the server step, with nothing further sent.

Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent", ICLR 2018
(Section 2; the multiplicative rule is that of its last paragraph), carried over from
gradients to a federated round's mean updates.

Round t, from the model x and the mean update D = mean (x_i - x) of this round:

    h   = <-D, d>                       d: the direction of the round before
    eta <- eta - rate * h                                   the additive rule
    eta <- eta * (1 - rate * h / (|D| |d|))                 the multiplicative rule
    d   <- direction(-D)                direction: an optax optimizer
    x   <- x + eta * d

**The bias.** d is the derivative of x in the last step, so the hypergradient of this
cohort's loss F, one step ahead, is <grad F(x), d>. h has -D in the place of grad F(x),
which costs no communication and is not that gradient:

- after one full-batch local step -D is client_lr * grad F(x), and h is right but for
  this factor;
- after more local steps the clients drift, and -D is zero where averaging stays, not
  where F is least: near there the sign of h can be wrong;
- like any look-ahead of one round it ignores what a step does to later ones, and lets
  the step shrink (Wu et al., "Understanding short-horizon bias in stochastic
  meta-optimization", ICLR 2018).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.tree_utils import tree_vdot

import fad
from algorithms import fedavg
from algorithms._ranges import check_range
from algorithms.fedavg import Weighting, average

Rule = Literal["additive", "multiplicative"]


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    server: Any  # the server optimizer's state
    direction: Any  # the direction d of the last round, zero before the first
    lr: Any  # eta


def hypergradient_descent(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    server_lr: float = 1.0,
    rule: Rule = "multiplicative",
    rate: float = 0.02,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedAvg whose server step follows the products of successive updates.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        server: Turns the mean update, as a gradient, into a direction.
        client: The clients' optimizer; it starts afresh every round.
        server_lr: Where eta starts.
        rule: The multiplicative one does not depend on the scale of the updates and
            keeps eta positive; the additive one does neither.
        rate: How fast eta moves.
        weighting: Weigh clients by their examples, or all the same.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the loss before each local step,
        ``server_lr``, the step this round took, and ``hypergradient``, the proxy h.
    """

    def init(key):
        params = init_params(key)
        still = jax.tree.map(jnp.zeros_like, params)
        lr = jnp.asarray(server_lr, jnp.result_type(float))
        return State(params, server.init(params), still, lr)

    @fad.program
    def step(state, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            return fad.local.train(
                state.params, batches, loss=loss, optimizer=client, key=own
            )

        local = fad.map(client_work, cohort)
        delta, train_loss = average(
            (local.delta, local.loss), local.num_examples, weighting
        )
        gradient = jax.tree.map(jnp.negative, delta)
        proxy = dot(gradient, state.direction)
        if rule == "additive":
            lr = state.lr - rate * proxy.astype(state.lr.dtype)
        else:
            lr = state.lr * (1 - rate * cosine(gradient, state.direction, state.lr))
        direction, memory = server.update(gradient, state.server, state.params)
        params = move(state.params, direction, lr)
        names = ("train_loss", "server_lr", "hypergradient")
        metrics = dict(zip(names, (train_loss, lr, proxy), strict=True))
        return State(params, memory, direction, lr), metrics

    return fad.Algorithm(init, step)


def move(params: Any, direction: Any, lr: jax.Array) -> Any:
    """Return ``params + lr * direction``."""
    return jax.tree.map(lambda p, d: p + lr.astype(d.dtype) * d, params, direction)


def dot(a: Any, b: Any) -> jax.Array:
    """Return the inner product of two trees."""
    return jnp.asarray(tree_vdot(a, b))


def cosine(a: Any, b: Any, like: jax.Array) -> jax.Array:
    """Return the cosine of two trees in the dtype of ``like``, 0 where one is zero."""
    product = dot(a, b)
    for squared in (dot(a, a), dot(b, b)):
        # The square root has no derivative at 0, and 0 / 1 is 0.
        safe = jnp.where(squared > 0, squared, jnp.ones_like(squared))
        product = product / jnp.sqrt(safe)
    return product.astype(like.dtype)


@dataclass(frozen=True)
class Config(fedavg.BaseConfig):
    """The options of FedAvg, and how the server step is learned."""

    rule: Rule = "multiplicative"
    rate: float = 0.02

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        # Below 1 the multiplicative rule keeps the step positive.
        end = "1" if self.rule == "multiplicative" else "inf"
        check_range(self, f"[0, {end})", "rate")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    return hypergradient_descent(
        task.loss,
        task.init,
        server=server,
        client=client,
        server_lr=config.server_lr,
        rule=config.rule,
        rate=config.rate,
        weighting=config.weighting,
    )
