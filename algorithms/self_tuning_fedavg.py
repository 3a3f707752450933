"""FedAvg that learns its server step by differentiating through the communication.

After Rush et al., "Federated Automatic Differentiation" (JMLR 25, 2024), which adjusts
FedAvg's server step automatically; its own pseudo-code is not public, so this is what
its forward mode gives.

One round takes the server's state s = (model x, optimizer state) to s' = R(s, eta), and
measures F(x), the loss of this round's clients at the model it starts from. With the
tangent v = ds / d log eta of everything that led here,

    h  = dF / d log eta = <grad F(x), v_x>            the hypergradient of this round
    v' = memory * DR(s) v  +  dR / d log eta          carried to the next round

and a meta-optimizer steps on log eta by h, so eta stays positive and the scale of h
does not matter. Both lines are one ``jax.jvp`` of the round. Forward mode needs no
further round: the broadcast carries x and v_x, each client answers with its update, its
loss, and their tangents.

``memory`` in [0, 1) is how far back a step is held to account. With 0 only the last
round's step is, v' is the step itself, and the clients send one more number instead of
a tangent of the whole model; but that look-ahead is short-sighted and lets the step
shrink (Wu et al., "Understanding short-horizon bias in stochastic meta-optimization",
ICLR 2018).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fad
from algorithms import fedavg
from algorithms.fedavg import Weighting, average


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    server: Any  # the server optimizer's state
    tangent: Any  # d (params, server) / d log eta; None at what is not a real number
    log_lr: Any  # log eta
    meta: Any  # the meta-optimizer's state


def self_tuning_fedavg(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    meta: optax.GradientTransformation,
    server_lr: float = 1.0,
    memory: float = 0.9,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedAvg with a learned server step.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        server: Turns the mean update, as a gradient, into a direction.
        client: The clients' optimizer; it starts afresh every round.
        meta: The optimizer of log eta, from its hypergradient.
        server_lr: Where eta starts.
        memory: How far back a step is held to account, in [0, 1).
        weighting: Weigh clients by their examples, or all the same.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, the cohort's loss at the model it
        was sent, ``server_lr``, the step this round took, and ``hypergradient``.
    """

    def init(key):
        params = init_params(key)
        memories = server.init(params)
        log_lr = jnp.log(jnp.asarray(server_lr, jnp.result_type(float)))
        model = (params, memories)
        still = jax.tree.map(lambda x: _keep_tangent(x, jnp.zeros_like(x)), model)
        return State(params, memories, still, log_lr, meta.init(log_lr))

    one_round = functools.partial(
        _round,
        loss=loss,
        server=server,
        client=client,
        memory=memory,
        weighting=weighting,
        random_loss=random_loss,
    )

    @fad.program
    def step(state, cohort, key):
        model = (state.params, state.server)
        lr = jnp.exp(state.log_lr)
        (train_loss, model), (hypergradient, tangent) = jax.jvp(
            lambda s, log_lr: one_round(s, log_lr, cohort, key),
            (model, state.log_lr),
            (_as_tangent(model, state.tangent), jnp.ones_like(state.log_lr)),
        )
        change, meta_state = meta.update(hypergradient, state.meta, state.log_lr)
        log_lr = optax.apply_updates(state.log_lr, change)
        names = ("train_loss", "server_lr", "hypergradient")
        metrics = dict(zip(names, (train_loss, lr, hypergradient), strict=True))
        kept = jax.tree.map(_keep_tangent, model, tangent)
        params, memories = model
        return State(params, memories, kept, log_lr, meta_state), metrics

    return fad.Algorithm(init, step)


def _round(
    model, log_lr, cohort, key, *, loss, server, client, memory, weighting, random_loss
):
    """One round of FedAvg as a function of all that log eta influences."""

    def client_work(x, batches):
        own = fad.local.client_key(key, batches.client) if random_loss else None
        before, seen = fad.local.evaluate(x, batches, loss=loss, key=own)
        start = jax.tree.map(lambda v: _fade(v, memory), x)
        local = fad.local.train(start, batches, loss=loss, optimizer=client, key=own)
        return before, seen, local.delta

    before, seen, delta = fad.map(client_work, fad.broadcast(model[0]), cohort)
    train_loss, delta = average((before, delta), seen, weighting)
    gradient = jax.tree.map(lambda d: -d, delta)
    params, memories = jax.tree.map(lambda x: _fade(x, memory), model)
    direction, memories = server.update(gradient, memories, params)
    lr = jnp.exp(log_lr)
    params = jax.tree.map(lambda p, d: p + lr.astype(d.dtype) * d, params, direction)
    return train_loss, (params, memories)


def _fade(x: jax.Array, memory: float) -> jax.Array:
    """Return ``x`` with its tangent times ``memory``."""
    still = jax.lax.stop_gradient(x)
    if memory == 0 or not _is_real(x):
        return still
    return still + memory * (x - still)


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _keep_tangent(x: jax.Array, tangent: Any) -> Any:
    return tangent if _is_real(x) else None


def _as_tangent(model: Any, tangent: Any) -> Any:
    """Fill in the trivial tangents of what is not a real number, for ``jax.jvp``."""

    def fill(x, t):
        return np.zeros(jnp.shape(x), jax.dtypes.float0) if t is None else t

    return jax.tree.map(fill, model, tangent, is_leaf=lambda x: x is None)


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and of the meta-optimizer, Adam on log eta."""

    memory: float = 0.9
    meta_lr: float = 0.2
    meta_b1: float = 0.5
    meta_b2: float = 0.9

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if self.meta_lr < 0:
            raise ValueError(f"meta_lr: expected >= 0, got {self.meta_lr!r}")
        for name in ("memory", "meta_b1", "meta_b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected in [0, 1), got {getattr(self, name)!r}"
                )


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    return self_tuning_fedavg(
        task.loss,
        task.init,
        server=server,
        client=client,
        meta=optax.adam(config.meta_lr, b1=config.meta_b1, b2=config.meta_b2),
        server_lr=config.server_lr,
        memory=config.memory,
        weighting=config.weighting,
    )
