"""Programs that leak nothing: rounds, loops, client state, nesting, real algorithms.

Every one takes ``(w, data)`` of ``ARGS``; the result is any tree, at the server and at
the clients. ``scalar`` makes one server number of it, to be differentiated.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fad
from algorithms.fedavg import fedavg
from algorithms.self_tuning_fedavg import self_tuning_fedavg
from fad.placement import is_at_clients

N, ROUNDS, STEPS, ROWS, D = 4, 2, 2, 2, 3
_random = np.random.default_rng(0)


def _leaf(*shape):
    return jnp.asarray(_random.normal(size=shape), jnp.float32)


ARGS = (
    _leaf(D),
    fad.AtClients(
        {"x": _leaf(N, D), "y": _leaf(N), "batches": _leaf(N, STEPS, ROWS, D)}
    ),
)
COHORTS = (
    ARGS[0],
    fad.AtClients(
        {"x": _leaf(ROUNDS, N, D), "y": _leaf(ROUNDS, N)}
    ),  # a cohort per round: the client axis is the second one
)
# Of N clients too, so that shapes tell nothing.
SQUARE = (ARGS[0], fad.AtClients({"x": _leaf(N, N, D), "y": _leaf(N, N)}))

HONEST: dict[str, tuple[Callable, tuple]] = {}
NOT_REVERSIBLE = ["loops_on_a_server_value"]  # a while loop has no reverse mode


def honest(*all_args: tuple) -> Callable:
    """Enter a program with its arguments."""

    def enter(fn):
        for i, args in enumerate(all_args or (ARGS,)):
            HONEST[fn.__name__ + "_again" * i] = (fn, args)
        return fn

    return enter


def scalar(fn: Callable) -> Callable:
    """Return ``fn`` with its outputs' squares added up, the clients' by a sum."""

    def squared(*args):
        out = fn(*args)
        leaves = jax.tree.leaves(out, is_leaf=is_at_clients)
        return sum(map(_square, leaves), start=jnp.zeros(()))

    return squared


def _square(v):
    if is_at_clients(v):
        return fad.program(lambda u: fad.sum(fad.map(_squares, u)))(v)
    return _squares(v)


def _squares(tree):
    arrays = map(jnp.asarray, jax.tree.leaves(tree))
    smooth = [v for v in arrays if jnp.issubdtype(v.dtype, jnp.floating)]
    return sum((jnp.sum(v * v) for v in smooth), start=jnp.zeros(()))


def work(w: Any, x: Any) -> Any:
    """One client's work: a smooth function of the params."""
    return jnp.sin(w * x) + w


@fad.program
def fl_round(w, data):
    """One round."""
    local = fad.map(work, fad.broadcast(w), data["x"])
    return w + 0.1 * fad.mean(local)


# ------------------------------------------------------------------------------------
# single rounds
# ------------------------------------------------------------------------------------


honest()(fl_round)


@honest()
@fad.program
def weighted_round(w, data):
    weights = fad.map(jax.nn.softplus, data["y"])
    local = fad.map(work, fad.broadcast(w), data["x"])
    both = fad.map(lambda v: {"delta": v, "total": jnp.sum(v)}, local)
    return fad.weighted_mean(both, weights)


@honest()
@fad.program
def closes_over_server_values(w, data):
    return fad.sum(fad.map(lambda x: work(2 * w, x), data["x"]))


@honest()
@fad.program
def recomputes_at_the_clients(w, data):
    return fad.mean(fad.map(work, fad.broadcast(w), data["x"], remat=True))


@honest()
@fad.program
def counts_with_ints_and_bools(w, data):
    positive = fad.map(lambda v: (v > 0, jnp.int32(1)), data["y"])
    mean = fad.mean(fad.map(work, fad.broadcast(w), data["x"]))
    return mean * fad.mean(positive[0]) / fad.sum(positive[1])


@honest()
@fad.program
def returns_what_stays_at_the_clients(w, data):
    local = fad.map(work, fad.broadcast(w), data["x"])
    return {"mean": fad.mean(local), "local": local, "data": data}


@honest()
@fad.program
def sends_keys(w, data):
    keys = fad.broadcast(jax.random.key(0))

    def noisy(key, x):
        return work(w, x) + jax.random.normal(key, x.shape)

    return fad.mean(fad.map(noisy, keys, data["x"]))


@honest()
@fad.program
def gives_each_client_its_own_key(w, data):
    keys = fad.AtClients(jax.random.split(jax.random.key(0), N))
    return fad.mean(
        fad.map(lambda k, x: work(w, x) * jax.random.uniform(k), keys, data["x"])
    )


@honest()
@fad.program
def clips_at_the_clients(w, data):
    def clip(x):
        v = work(w, x)
        return v / jnp.maximum(1.0, jnp.sqrt(jnp.sum(v * v) + 1e-6))

    noise = jax.random.normal(jax.random.key(1), (D,))
    return fad.sum(fad.map(clip, data["x"])) + 0.1 * noise


# ------------------------------------------------------------------------------------
# loops and branches
# ------------------------------------------------------------------------------------


@honest()
def scans_over_rounds(w, data):
    return jax.lax.scan(lambda v, _: (fl_round(v, data), v), w, None, length=ROUNDS)


@honest(COHORTS, SQUARE)
def takes_a_cohort_per_round(w, cohorts):
    return jax.lax.scan(lambda v, cohort: (fl_round(v, cohort), None), w, cohorts)[0]


@honest(COHORTS, SQUARE)
def picks_the_cohort_of_a_round(w, cohorts):
    def body(i, v):
        return fl_round(v, jax.tree.map(lambda c: c[i], cohorts))

    return jax.lax.fori_loop(0, ROUNDS, body, w)


@honest()
@fad.program
def keeps_client_state(w, data):
    def body(state, _):
        state = fad.map(lambda s, x: 0.5 * s + work(s, x), state, data["x"])
        return state, fad.mean(state)

    return jax.lax.scan(body, fad.broadcast(w), None, length=ROUNDS)


@honest()
@fad.program
def starts_client_state_from_zeros(w, data):
    def body(carry, _):
        v, control = carry
        control = fad.map(lambda c, x: c + work(v, x), control, data["x"])
        return (v + 0.1 * fad.mean(control), control), None

    start = w, fad.AtClients(jnp.zeros((N, D)))
    return jax.lax.scan(body, start, None, length=ROUNDS)[0]


@honest()
def carries_momentum(w, data):
    def body(carry, _):
        v, velocity = carry
        velocity = 0.9 * velocity + fl_round(v, data) - v
        return (v + velocity, velocity), None

    return jax.lax.scan(body, (w, jnp.zeros_like(w)), None, length=ROUNDS)[0]


@honest()
def branches_on_a_server_value(w, data):
    new = fl_round(w, data)
    return jax.lax.cond(
        new.sum() > 0, lambda v: fl_round(v, data), lambda v: 0.5 * v, new
    )


@honest()
def loops_on_a_server_value(w, data):
    def body(carry):
        i, v = carry
        return i + 1, fl_round(v, data)

    keep = lambda c: (c[0] < ROUNDS) & (jnp.max(c[1]) < 1e3)  # noqa: E731
    return jax.lax.while_loop(keep, body, (0, w))[1]


@honest()
@fad.program
def branches_at_the_clients(w, data):
    def choose(x, y):
        return jax.lax.cond(y > 0, lambda: work(w, x), lambda: w * x)

    return fad.mean(fad.map(choose, data["x"], data["y"]))


# ------------------------------------------------------------------------------------
# nesting
# ------------------------------------------------------------------------------------


@honest()
def nests_jit(w, data):
    once = jax.jit(fl_round)
    return jax.jit(lambda v, d: once(once(v, d), d))(w, data)


@honest()
def checkpoints_a_round(w, data):
    return jax.checkpoint(fl_round)(fl_round(w, data), data)


@honest()
@fad.program
def runs_a_program_in_a_map(w, data):
    """Each client is a server to the rows it holds."""

    @fad.program
    def within(v, rows):
        return fad.mean(fad.map(work, fad.broadcast(v), rows)), rows

    def own(v, batches):
        mean, _ = within(v, fad.AtClients(batches[0]))
        return mean + batches.sum()

    return fad.mean(fad.map(own, fad.broadcast(w), data["batches"]))


@honest()
def steps_along_a_gradient(w, data):
    return w - 0.1 * jax.grad(lambda v: jnp.sum(fl_round(v, data) ** 2))(w)


@honest()
def solves_at_the_server(w, data):
    """An implicit hypergradient: conjugate gradients, each step a round."""

    @fad.program
    def matvec(v):
        curvature = fad.map(lambda x, u: x * jnp.dot(x, u), data["x"], fad.broadcast(v))
        return v + fad.mean(curvature)

    return jax.scipy.sparse.linalg.cg(
        fad.program(matvec, clients=N), fl_round(w, data), maxiter=2
    )[0]


@honest()
@fad.program
def has_a_custom_derivative(w, data):
    @jax.custom_vjp
    def through(v):
        return jnp.round(v)

    through.defvjp(lambda v: (jnp.round(v), None), lambda _, ct: (ct,))
    return fad.mean(fad.map(lambda x: work(w, x) + through(x), data["x"]))


@honest()
@fad.program
def smooths_a_median(w, data):
    """The geometric median by Weiszfeld's steps: robust, and sums alone."""
    local = fad.map(work, fad.broadcast(w), data["x"])

    def step(centre, _):
        def weigh(v):
            return 1.0 / jnp.sqrt(jnp.sum((v - centre) ** 2) + 1e-3)

        return fad.weighted_mean(local, fad.map(weigh, local)), None

    return jax.lax.scan(step, fad.mean(local), None, length=2)[0]


# ------------------------------------------------------------------------------------
# algorithms
# ------------------------------------------------------------------------------------


def _loss(params, examples):
    return jnp.tanh(examples["x"] @ params) ** 2


def _cohort(data):
    def batches(x):
        mask = jnp.ones(x.shape[:2], bool)
        return fad.local.Batches({"x": x}, mask, jnp.int32(0))

    return fad.program(lambda d: fad.map(batches, d["batches"]))(data)


def _step(algorithm, data):
    state = algorithm.init(jax.random.key(0))
    return algorithm.step(state, _cohort(data), jax.random.key(1))


@honest()
def fedavg_step(w, data):
    algorithm = fedavg(
        _loss,
        lambda key: w,
        server=optax.sgd(1.0, momentum=0.9),
        client=optax.sgd(0.1),
    )
    return _step(algorithm, data)


@honest()
def self_tuning_fedavg_step(w, data):
    algorithm = self_tuning_fedavg(
        _loss,
        lambda key: w,
        optimizers=lambda h: (
            optax.sgd(h["server_lr"], momentum=0.9),
            optax.sgd(0.1),
        ),
        start={"server_lr": 1.0},
        meta=optax.sgd(0.1),
    )
    return _step(algorithm, data)
