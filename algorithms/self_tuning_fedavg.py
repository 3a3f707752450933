"""FedAvg that learns its own hyper-parameters through the communication.

After Rush et al., "Federated Automatic Differentiation" (JMLR 25, 2024), which adjusts
FedAvg's server step; its pseudo-code is not public, so this is what its modes give.

One round takes the state s = (model x, optimizer state) to s' = R(s, theta) and
measures F(x), the loss of its clients at the model they are sent. Theta holds what is
learned, steps as logarithms and momenta as logits: the server's, one per layer, the
clients'. Each round h = dF / d theta by an estimator of fad, and an optax optimizer
steps on theta by h.

By default in online forward mode: the broadcast carries x and its tangent, a client
answers with its update, its loss and their tangents, and no round is added. ``memory``
in (0, 1] is how far back theta is held to account: near 0 the look-ahead is so short
that steps shrink (Wu et al., "Understanding short-horizon bias in stochastic
meta-optimization", ICLR 2018), at 1 tangents explode where training is chaotic. With
``lookahead = k`` a step of the algorithm is k rounds, by k parts of its cohort; modes
``window`` (forward), ``mixed`` and ``reverse`` differentiate these k rounds alone.

A server step that is far too large is undone: where the clients report a loss above
``reject`` times the worst of late, or none, the server goes back by the factor
``shrink`` towards the model before that step, and its step shrinks likewise.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms import _safeguard, fedavg
from algorithms._hyper import free, gentler, shown, slopes, values
from algorithms._lookahead import Mode, estimator, parts
from algorithms._optimizers import optimizers_of
from algorithms._ranges import check_range
from algorithms._safeguard import choose
from algorithms.fedavg import Weighting, average

Learned = Literal["server_lr", "layer_lrs", "server_b1", "client_lr"]


class Model(NamedTuple):
    """All that theta influences."""

    params: Any
    server: Any  # the server optimizer's state
    seen: jax.Array  # the examples of the last round's clients


class State(NamedTuple):
    """The server's state: the estimator's, with the model, and what is learned."""

    carry: Any
    theta: dict[str, Any]
    meta: Any  # the meta-optimizer's state
    guard: _safeguard.Safeguard
    params = property(lambda self: self.carry.state.params)


def self_tuning_fedavg(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    optimizers: Callable[[dict[str, Any]], tuple[Any, Any]],
    start: dict[str, Any],
    meta: optax.GradientTransformation,
    mode: Mode = "forward",
    memory: float = 0.95,
    lookahead: int = 1,
    reject: float = 2.0,
    shrink: float = 4.0,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FedAvg with learned hyper-parameters.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        optimizers: The server's and the clients' optimizer for given hyper-parameters.
        start: Where the learned ones start; names in ``_b1`` or ``_b2`` are fractions.
        meta: The optimizer of theta, from its hypergradient.
        mode: How the hypergradient is taken.
        memory: How far back forward mode looks, in (0, 1].
        lookahead: Rounds in a step; they divide the cohort.
        reject: A step to a loss above so many times the worst of late is undone.
        shrink: By how much.
        weighting: Weigh clients by their examples, or all the same.
        random_loss: Whether the loss takes a key.

    Returns:
        The algorithm. Its metrics: ``train_loss`` at the model sent (the worst of late
        if none), hyper-parameters, ``slope_*`` of each, ``undone`` steps in a row.
    """
    one_round = _round(loss, optimizers, weighting, random_loss)
    tuner = estimator(one_round, mode, memory, lookahead)
    safe = fad.estimators.safe_update(meta)

    def init(key):
        params, theta = init_params(key), free(start)
        server = optimizers(values(theta))[0].init(params)
        carry = tuner.init(theta, Model(params, server, jnp.zeros(())), None)
        return State(carry, theta, safe.init(theta), _safeguard.begin(params))

    def step(state, cohort, key):
        cohorts, keys = parts("self_tuning_fedavg", cohort, key, lookahead)
        estimate = tuner.estimate(state.theta, state.carry, cohorts, keys)
        model = estimate.carry.state
        sent = {"params": state.params, "seen": model.seen, "reject": reject}
        verdict, guard = _safeguard.judge(state.guard, estimate, **sent)
        theta, meta_state = safe.update(estimate, state.meta, state.theta)
        carry = choose(estimate.finite, estimate.carry, tuner.init(theta, model, None))
        back = undone(state, guard, verdict)
        new = choose(verdict.good, State(carry, theta, meta_state, guard), back)
        # A run ends at a loss that is no number; here that step is undone.
        shows = jnp.where(jnp.isfinite(estimate.value), estimate.value, guard.worst)
        metrics = {"train_loss": shows, "undone": guard.in_row}
        return new, metrics | shown(state.theta) | slopes(estimate.gradient)

    def undone(state, guard, verdict):
        theta, model = gentler(state.theta, shrink), state.carry.state
        params = _safeguard.undone(guard, verdict, model.params, shrink)
        carry = tuner.init(theta, model._replace(params=params), None)
        return state._replace(carry=carry, theta=theta, guard=guard)

    return fad.Algorithm(init, step, _safeguard.check)


def _round(loss, optimizers, weighting, random_loss):
    @fad.program
    def one_round(theta, model, cohort, key):
        server, client = optimizers(values(theta))

        def client_work(x, batches):
            own = fad.local.client_key(key, batches.client) if random_loss else None
            before, seen = fad.local.evaluate(x, batches, loss=loss, key=own)
            local = fad.local.train(x, batches, loss=loss, optimizer=client, key=own)
            return before, seen, local.delta

        sent = fad.map(client_work, fad.broadcast(model.params), cohort)
        train_loss, delta = average((sent[0], sent[2]), sent[1], weighting)
        gradient = jax.tree.map(lambda d: -d, delta)
        change, memories = server.update(gradient, model.server, model.params)
        memories = jax.tree.map(lambda m, x: m.astype(x.dtype), memories, model.server)
        params = optax.apply_updates(model.params, change)
        total = fad.sum(sent[1]).astype(model.seen.dtype)
        return Model(params, memories, total), train_loss

    return one_round


@dataclass(frozen=True)
class Config(fedavg.BaseConfig):
    """The options of FedAvg, of what is learned, and of Adam on it."""

    learn: tuple[Learned, ...] = ("server_lr",)
    mode: Mode = "forward"
    memory: float = 0.95
    lookahead: int = 1
    reject: float = 2.0
    shrink: float = 4.0
    meta_lr: float = 0.15
    meta_b1: float = 0.5
    meta_b2: float = 0.9

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, 1]", "memory")
        check_range(self, "[1, inf)", "lookahead")
        check_range(self, "(1, inf)", "reject", "shrink")
        check_range(self, "[0, inf)", "meta_lr")
        check_range(self, "[0, 1)", "meta_b1", "meta_b2")
        if not self.learn:
            raise ValueError("learn: expected at least one of server_lr, client_lr, ..")
        if "server_b1" in self.learn and self.server in ("sgd", "adagrad"):
            raise ValueError(f"learn: server={self.server!r} has no server_b1 to learn")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    start = vars(config) | {"layer_lrs": jax.tree.map(lambda x: 1.0, params)}
    return self_tuning_fedavg(
        task.loss,
        task.init,
        optimizers=functools.partial(optimizers_of, config),
        start={name: start[name] for name in config.learn},
        meta=optax.adam(config.meta_lr, b1=config.meta_b1, b2=config.meta_b2),
        mode=config.mode,
        memory=config.memory,
        lookahead=config.lookahead,
        reject=config.reject,
        shrink=config.shrink,
        weighting=config.weighting,
    )
