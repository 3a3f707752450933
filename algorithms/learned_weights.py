"""FedAvg with learned client weights, by gradients through the communication.

After Rush et al., "Federated Automatic Differentiation" (JMLR 25, 2024), which learns
weights so; its pseudo-code is not public, so this is what its modes give. A client's
weight is ``w_phi(z_i)`` of features ``z_i`` that it reveals inside sums alone: the
logarithm of its examples, its loss before and after local training, the norm of its
update d_i. With ``D = sum w_i d_i / sum w_i``, x' = x + eta * direction(D).

Objective, what phi is to lower (``objective``):

- ``cohort``: the mean loss of clients that were sent the new model. Nothing but the
  clients' data is needed, but a client with wrong labels has its say: it asks for
  models that fit them.
- ``validation``: that of clean examples at the server, ``task.validation``, as FedLAW's
  proxy data (Li et al., ICML 2023). It costs no communication.

Mode, by what phi has:

- ``forward``, few parameters: one tangent of the server's state per parameter is
  carried over the rounds, fading by ``memory`` as in ``self_tuning_fedavg``. No further
  round; (1 + k) models down and up. The cohort's loss is that of the next cohort at the
  model this one made. With memory 1 the hypergradient is that of the whole run.
- ``reverse``, many parameters: a look-ahead of one round, with a backward round in
  which the same cohort is reached again. ``validation`` needs nothing more. ``cohort``
  judges within the cohort: its two random halves make a model each, and each half
  judges the other's, since a client that judges its own update asks for more of it. A
  step is two rounds and their backward rounds, and two models are sent.

Both look-aheads are biased where phi's effect lasts for longer than they look.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import optax

import fad
from algorithms import _tangents, fedavg
from algorithms._learned_round import Round
from algorithms._ranges import check_range
from algorithms._weight_functions import (
    Kind,
    WeightFunction,
    no_moments,
    refuse,
    scalars,
    weight_function,
)
from algorithms.fedavg import Weighting

Mode = Literal["forward", "reverse"]
Objective = Literal["cohort", "validation"]


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    server: Any  # the server optimizer's state
    moments: Any  # running moments of the clients' features
    tangent: Any  # d (the above) / d phi, ``[k, *]``; None in reverse mode
    phi: Any  # the weight function's parameters
    meta: Any  # the meta-optimizer's state


def learned_weights(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    function: WeightFunction,
    server: optax.GradientTransformation,
    client: optax.GradientTransformation,
    meta: optax.GradientTransformation,
    server_lr: float = 1.0,
    mode: Mode = "forward",
    memory: float = 0.9,
    validation: Any = None,
    weighting: Weighting = "examples",
    on_bad: Literal["clamp", "refuse"] = "clamp",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedAvg with a learned weight function.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        function: The weight function w_phi.
        server: Turns the weighted mean update, as a gradient, into a direction.
        client: The clients' optimizer; it starts afresh every round.
        meta: The optimizer of phi, from its hypergradient.
        server_lr: The server step eta.
        mode: ``forward`` for few parameters, ``reverse`` for many.
        memory: Of the forward mode, how far back phi is held to account, in [0, 1].
        validation: The server's own examples as objective; the cohort's without.
        weighting: How the cohort's losses count in its objective.
        on_bad: A weight that is negative or not finite counts as zero; ``refuse`` makes
            the run end with the features that caused it.
        random_loss: Whether the loss is ``loss(params, examples, key)``; on the
            server's examples the key is the round's.

    Returns:
        The algorithm. Its metrics are ``train_loss``, the cohort's loss at the model it
        was sent, ``meta_loss``, the objective, the norm of its ``hypergradient``, the
        ``effective_clients`` ``(sum w)^2 / sum w^2``, ``bad_clients`` with the means of
        their features, and phi's scalars.
    """
    one_round = Round(
        loss, function, server, client, server_lr, validation, weighting, random_loss
    )

    def init(key):
        key, own = jax.random.split(key)
        params, phi = init_params(key), function.init(own)
        model = params, server.init(params), no_moments()
        tangent = _tangents.still(model, phi) if mode == "forward" else None
        return State(*model, tangent, phi, meta.init(phi))

    @fad.program
    def step(state, cohort, key):
        model, phi = tuple(state[:3]), state.phi
        if mode == "forward":
            run = functools.partial(one_round, cohort=cohort, key=key, memory=memory)
            out = _tangents.push(run, model, phi, state.tangent)
            meta_loss, model, metrics, slope, tangent = out
        else:
            ahead = functools.partial(_ahead, one_round, model, (cohort, key))
            value = jax.value_and_grad(ahead, has_aux=True)
            ((meta_loss, (model, metrics)), slope), tangent = value(phi), None
        change, meta_state = meta.update(_tangents.finite(slope), state.meta, phi)
        metrics |= {"meta_loss": meta_loss, "hypergradient": optax.tree.norm(slope)}
        metrics |= scalars(phi)
        phi = optax.apply_updates(phi, change)
        params, memories, moments = model
        state = State(params, memories, moments, tangent, phi, meta_state)
        return state, metrics

    return fad.Algorithm(init, step, refuse if on_bad == "refuse" else None)


def _ahead(one_round, model, inputs, phi):
    """Return the objective after this round, and what the round gave."""
    look = one_round if one_round.validation is not None else one_round.judged
    (meta_loss, new), metrics = look(model, phi, *inputs)
    return meta_loss, (new, metrics)


@dataclass(frozen=True)
class Config(fedavg.BaseConfig):
    """The options of FedAvg, of the weights, and of their meta-optimizer, Adam."""

    weights: Kind = "exponent"
    exponent: float = 0.0
    hidden: tuple[int, ...] = (8,)
    mode: Mode = "forward"
    objective: Objective = "cohort"
    memory: float = 0.9
    on_bad: Literal["clamp", "refuse"] = "clamp"
    meta_lr: float = 0.05
    meta_b1: float = 0.9
    meta_b2: float = 0.99

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        if self.meta_lr < 0:
            raise ValueError(f"meta_lr: expected >= 0, got {self.meta_lr!r}")
        check_range(self, "[0, 1)", "memory", "meta_b1", "meta_b2")
        if any(n < 1 for n in self.hidden):
            raise ValueError(f"hidden: expected widths >= 1, got {list(self.hidden)}")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    wanted = config.objective == "validation"
    if wanted and task.validation is None:
        raise fad.ConfigError(
            'algorithm.objective = "validation" needs examples at the server, and the '
            "task has none: set data.validation_fraction, such as 0.05."
        )
    server, client = fedavg.optimizers(config)
    shape = {"exponent": config.exponent, "hidden": config.hidden}
    return learned_weights(
        task.loss,
        task.init,
        function=weight_function(config.weights, **shape),
        server=server,
        client=client,
        meta=optax.adam(config.meta_lr, b1=config.meta_b1, b2=config.meta_b2),
        server_lr=config.server_lr,
        mode=config.mode,
        memory=config.memory,
        validation=task.validation if wanted else None,
        weighting=config.weighting,
        on_bad=config.on_bad,
    )
