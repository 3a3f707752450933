"""FATHOM: hypergradient descent on what the clients do.

Kan, "Federated Hypergradient Descent", 2022 (arXiv 2211.02106; Equations 5 and 13).
From the clients' mean update D and one more number per client the server learns their
step, their passes E over their examples and their batch size B:

    H = -cos(D, Dsm)                 Dsm: mean updates so far; Dsm <- (Dsm + D) / 2
    G = -mean_i min_k cos(gradient of local step k, x - x_i after it)
    step <- step * exp(-rate * H)    at most ``max_client_lr``
    E    <- E * exp(-rate * (H + G)) at most ``passes``
    B    <- B * exp(10 rate * G)     from 1 to the rows of a batch
    K_i = floor(n_i E / B) local steps, at least 1; the authors' code has ``round_up``

**What is bounded.** Cohorts are padded batches, made before the round, so masks realise
E and B: at most B rows of each batch, and the first K_i batches. E ends at the passes
that the cohort holds (``passes``, the experiment's epochs; the paper has 10) and B at
its batch; a smaller B leaves rows unused, where the paper makes more batches of them.
What is learned is kept within; for room to grow, start below. H and G are products of
updates, no derivatives: the bias is that of ``hypergradient_descent``.

``learn = "server"`` is Equation 5 at the server: log eta, of the step on the mean
update, moves as that of the client step above; the clients go through all batches.
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
from algorithms.hypergradient_descent import cosine, move

Learn = Literal["client", "server"]


class Work(NamedTuple):
    """What a client does in a round: its step, passes E and batch size B."""

    lr: Any
    epochs: Any
    batch: Any


class State(NamedTuple):
    """The server's state."""

    params: Any  # the global model x
    server: Any  # the server optimizer's state
    smooth: Any  # the smoothed mean update Dsm, zero before the first round
    log_lr: Any  # log eta
    work: Work  # learned, within its bounds


def fathom(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    server: optax.GradientTransformation,
    client: Callable[[jax.Array], optax.GradientTransformation],
    start: Work,
    max_client_lr: float = 1.0,
    passes: float = 1.0,
    round_up: bool = False,
    learn: Learn = "client",
    rate: float = 0.01,
    server_lr: float = 1.0,
    weighting: Weighting = "examples",
    random_loss: bool = False,
) -> fad.Algorithm:
    """Build FATHOM.

    Args:
        loss: ``loss(params, examples) -> [batch]``, one loss per row.
        init_params: ``init_params(key) -> params``.
        server: Turns the mean update, as a gradient, into a direction.
        client: ``client(lr) -> optimizer`` of the clients, afresh every round.
        start: Where the clients' step, passes and batch size start.
        max_client_lr: The clients' step is at most this.
        passes: The passes over a client's examples that its batches hold.
        round_up: Whether K_i is rounded up.
        learn: The ``client``'s work, or the ``server``'s step.
        rate: How fast the logarithms move; that of the batch size 10 times as fast.
        server_lr: The server step eta, or where it starts.
        weighting: Weigh clients by their examples, or all the same.
        random_loss: Whether the loss is ``loss(params, examples, key)``.

    Returns:
        The algorithm; its metrics are ``train_loss``, ``hypergradient`` (H), and the
        round's ``server_lr``, ``client_lr``, ``client_epochs`` and ``client_batch``.
    """
    rates = {"client": 0.0, "server": 0.0} | {learn: rate}

    def init(key):
        params = init_params(key)
        one = jnp.ones((), jnp.result_type(float))
        still = jax.tree.map(jnp.zeros_like, params)
        work = Work(*(one * value for value in start))
        return State(params, server.init(params), still, jnp.log(server_lr * one), work)

    def bounded(work, width):
        return Work(*map(jnp.clip, work, (0, 0, 1), (max_client_lr, passes, width)))

    @fad.program
    def step(state, cohort, key):
        width = jax.tree.leaves(cohort.mask)[0].shape[-1]
        work = bounded(state.work, width)

        def client_work(batches):
            held = jnp.sum(batches.mask, dtype=jnp.float32)
            if learn == "client":
                batches = _reduce(batches, work, passes, round_up)
            own = fad.local.client_key(key, batches.client) if random_loss else None
            return _train(state.params, batches, loss, client(work.lr), own), held

        sent, held = fad.map(client_work, cohort)
        delta, G, train_loss = average(sent, held, weighting)
        H = -cosine(delta, state.smooth, state.log_lr)
        smooth = jax.tree.map(lambda a, b: (a + b) / 2, state.smooth, delta)
        log_lr = state.log_lr - rates["server"] * H
        by = (-rates["client"] * slope for slope in (H, H + G, -10 * G))
        learned = bounded(map(lambda v, e: v * jnp.exp(e), work, by), width)
        gradient = jax.tree.map(jnp.negative, delta)
        direction, memory = server.update(gradient, state.server, state.params)
        lr = jnp.exp(log_lr)
        params = move(state.params, direction, lr)
        metrics = {"train_loss": train_loss, "server_lr": lr, "hypergradient": H}
        metrics |= {f"client_{name}": value for name, value in work._asdict().items()}
        return State(params, memory, smooth, log_lr, learned), metrics

    return fad.Algorithm(init, step)


def _reduce(batches: Any, work: Work, passes: float, round_up: bool) -> Any:
    """Keep K_i batches of B rows."""
    mask = batches.mask
    batch = jnp.round(work.batch)
    rows = jnp.sum(mask, dtype=batch.dtype) / passes
    steps = (jnp.ceil if round_up else jnp.floor)(rows * work.epochs / batch)
    taken = jnp.cumsum(mask.any(1), dtype=steps.dtype)  # padding may stand in between
    fit = (taken <= jnp.maximum(steps, 1))[:, None]
    return batches._replace(mask=mask & fit & (jnp.arange(mask.shape[1])[None] < batch))


def _train(params: Any, batches: Any, loss: Any, client: Any, key: Any) -> tuple:
    """Return the update, minus the least cosine of gradient and way, and the loss."""

    def update(updates, state, watched):  # The cosine is trained beside the params.
        x, least = watched
        change, state = client.update(updates[0], state, x)
        way = jax.tree.map(lambda s, p, c: s - (p + c), params, x, change)
        now = jnp.minimum(least, cosine(updates[0], way, least))
        return (change, now - least), state

    watch: Any = optax.GradientTransformation(lambda p: client.init(p[0]), update)  # type: ignore
    watched, start = lambda p, *rest: loss(p[0], *rest), (params, jnp.ones(()))
    local = fad.local.train(start, batches, loss=watched, optimizer=watch, key=key)
    return local.delta[0], -(1 + local.delta[1]), local.loss


@dataclass(frozen=True)
class Config(fedavg.BaseConfig):
    """The options of FedAvg, and how the clients' work is learned."""

    learn: Learn = "client"
    rate: float = 0.01
    epochs: float = 1.0
    batch: float = 10.0
    passes: float = 1.0
    round_up: bool = False
    max_client_lr: float = 1.0

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "[0, inf)", "rate", "epochs")
        check_range(self, "[1, inf)", "batch")
        check_range(self, f"[{self.epochs}, inf)", "passes")
        check_range(self, f"[{self.client_lr}, inf]", "max_client_lr")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    server, _ = fedavg.optimizers(config)
    names = ("max_client_lr", "passes", "round_up", "learn", "rate", "server_lr")
    return fathom(
        task.loss,
        task.init,
        server=server,
        client=lambda lr: optax.sgd(lr, momentum=config.client_momentum or None),
        start=Work(config.client_lr, config.epochs, config.batch),
        weighting=config.weighting,
        **{name: getattr(config, name) for name in names},
    )
