"""MAML and Per-FedAvg: learn the model from which clients adapt best.

Finn et al., "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML
2017 (Algorithm 1); Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with
Theoretical Guarantees: A Model-Agnostic Meta-Learning Approach", NeurIPS 2020
(Algorithm 1). The objective is the clients' mean loss *after* each has adapted the
model (algorithms/_personal.py), and nothing else is new:

    meta_step = "server"   MAML. The gradient of that program, taken through the
                           communication, steps at the server: one meta-step a round.
    meta_step = "clients"  Per-FedAvg. FedAvg on that loss: each local step is a
                           meta-step, on a batch of support and query rows.

A client's rows are support and query in turn; in a round a client of fewer than two
does not count. Per-FedAvg draws a third batch for the Hessian; here the support serves
again, so that a step is the gradient of the loss that it states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import fedavg
from algorithms._personal import Derivative, adapted_loss, mark
from algorithms.fedavg import State, Weighting


def per_fedavg(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    inner_lr: Any,
    inner_steps: int = 1,
    derivative: Derivative = "exact",
    delta: float = 0.1,
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build Per-FedAvg: FedAvg on the loss after adaptation.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row; with
            ``random_loss`` it is ``loss(params, examples, key)``.
        init_params: ``init_params(key) -> params``.
        server: Turns the mean update, as a gradient, into a direction.
        client: The clients' optimizer, of the meta-steps.
        inner_lr: The step of the adaptation.
        inner_steps: The steps of the adaptation, on the support of one batch.
        derivative: That of the adaptation: ``exact``, ``first_order``,
            ``hessian_free``.
        delta: The difference of ``hessian_free``.
        server_lr: The server step, times the direction.
        weighting: Weigh clients by their query examples, or all the same.
        random_loss: Whether the loss takes a key.

    Returns:
        The algorithm; ``train_loss`` is the loss after adaptation.
    """
    after = adapted_loss(
        loss, lr=inner_lr, steps=inner_steps, derivative=derivative, delta=delta
    )
    options = {"server_lr": server_lr, "weighting": weighting}
    algorithm = fedavg.fedavg(
        after,
        init_params,
        server=server,
        client=client,
        random_loss=random_loss,
        **options,
    )

    @fad.program
    def step(state, cohort, key):
        marked = fad.map(lambda batches: mark(batches, alone=True), cohort)
        return algorithm.step(state, marked, key)

    return fad.Algorithm(algorithm.init, step)


def maml_loss(
    after: Callable[..., jax.Array],
    *,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the program ``(params, cohort, key) -> sum, weight`` of a loss of marks.

    Their ratio is the mean. The weight does not depend on the parameters, so the
    gradient of the sum alone needs no second round.
    """

    @fad.program
    def total_loss(params, cohort, key):
        def client_work(batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            marked = mark(batches, alone=False)
            value, n = fad.local.evaluate(params, marked, loss=after, key=own)
            w = n if weighting == "examples" else (n > 0).astype(n.dtype)
            return w.astype(value.dtype) * value, w

        return fad.sum(fad.map(client_work, cohort))

    return total_loss


def maml(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    inner_lr: Any,
    inner_steps: int = 1,
    derivative: Derivative = "exact",
    delta: float = 0.1,
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build MAML: the gradient of ``maml_loss`` steps at the server.

    The arguments are those of ``per_fedavg``; half of all that a client holds in a
    round is its support, in one pass over its examples.
    """
    after = adapted_loss(
        loss, lr=inner_lr, steps=inner_steps, derivative=derivative, delta=delta
    )
    total_loss = maml_loss(after, weighting=weighting, random_loss=random_loss)

    def init(key):
        params = init_params(key)
        return State(params, server.init(params))

    @fad.program
    def step(state, cohort, key):
        # Reverse at each client, forward over the wire: one round, one gradient.
        slope = fad.value_and_grad(total_loss, mode="mixed", has_aux=True)
        (total, weight), gradient = slope(state.params, cohort, key)
        gradient, train_loss = jax.tree.map(
            lambda x: x / jnp.maximum(weight, 1).astype(x.dtype), (gradient, total)
        )
        direction, memory = server.update(gradient, state.server, state.params)
        params = jax.tree.map(lambda p, d: p + server_lr * d, state.params, direction)
        return State(params, memory), {"train_loss": train_loss, "server_lr": server_lr}

    return fad.Algorithm(init, step)


@dataclass(frozen=True)
class Config(fedavg.BaseConfig):
    """The options of FedAvg, whose client optimizer takes the clients' meta-steps."""

    meta_step: Literal["clients", "server"] = "clients"
    inner_lr: float = 0.1
    inner_steps: int = 1
    derivative: Derivative = "exact"
    delta: float = 0.1

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        for name in ("inner_lr", "delta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected > 0, got {getattr(self, name)!r}")
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps: expected >= 1, got {self.inner_steps!r}")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, client = fedavg.optimizers(config)
    names = ("inner_lr", "inner_steps", "derivative", "delta", "server_lr", "weighting")
    options = {name: getattr(config, name) for name in names}
    if config.meta_step == "server":
        return maml(task.loss, task.init, server=server, **options)
    return per_fedavg(task.loss, task.init, server=server, client=client, **options)
