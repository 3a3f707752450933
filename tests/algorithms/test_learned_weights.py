"""Learned client weights: exact hypergradients, known special cases, bad clients."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import fad
import fad.experiment
from algorithms import ALGORITHMS, fedavg
from algorithms._learned_round import Round
from algorithms._weight_functions import (
    Features,
    WeightFunction,
    no_moments,
    weight_function,
)
from algorithms.learned_weights import Config, build, learned_weights
from fad.experiment import DataConfig, ModelConfig, make_task
from tests.algorithms.conftest import init_params, loss

pytestmark = pytest.mark.once

KEY, CLIENT, LR = jax.random.key(0), optax.sgd(0.2), 0.7
STILL = optax.sgd(0.0)  # a meta-optimizer that leaves phi where it is
SERVERS = {"sgd": optax.sgd(1.0), "momentum": optax.sgd(1.0, momentum=0.9)}
OFF = {"log_examples": 0.3, "loss_before": -0.4, "loss_after": 0.2, "update_norm": -0.1}
LOGLINEAR = weight_function("loglinear")._replace(
    init=lambda key: {name: jnp.asarray(x) for name, x in OFF.items()}
)
EXPONENT = weight_function("exponent", exponent=0.6)
NETWORK = weight_function("network", hidden=(3,))
BY_LOSS = WeightFunction(lambda key: jnp.ones(()), lambda phi, z: phi - z.loss_before)


def make(function, *, server="sgd", meta: Any = STILL, **options: Any):
    return learned_weights(
        loss,
        init_params,
        function=function,
        server=SERVERS[server],
        client=CLIENT,
        meta=meta,
        server_lr=LR,
        **options,
    )


def rows_of(client):
    return {"x": jnp.asarray(client[0]), "y": jnp.asarray(client[1])}


def mean_loss(params, client):
    return jnp.mean(loss(params, rows_of(client)))


def pooled(federation, params):
    parts = [(len(c[1]), c) for c in federation.clients if len(c[1])]
    return sum(n * mean_loss(params, c) for n, c in parts) / sum(n for n, _ in parts)


def server_rows(federation):
    return jax.tree.map(lambda x: x[::2], rows_of(federation.clients[3]))


def plain_client(params, client, batch):
    """One client's update and features."""
    p, rows = params, rows_of(client)
    for start in range(0, len(client[1]), batch):
        own = jax.tree.map(lambda x, s=start: x[s : s + batch], rows)
        slope = jax.grad(lambda q, own=own: jnp.mean(loss(q, own)))(p)
        p = jax.tree.map(lambda a, g: a - 0.2 * g, p, slope)
    delta = jax.tree.map(jnp.subtract, p, params)
    norm = jnp.sqrt(sum(jnp.sum(d**2) for d in jax.tree.leaves(delta)))
    losses = mean_loss(params, client), mean_loss(p, client)
    return delta, jnp.stack([jnp.log(float(len(client[1]))), *losses, norm])


def standardised(z, moments):
    _, mean, square = moments
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 0) + 1e-6)
    return jnp.clip((z - mean) / deviation, -5, 5)


def plain_weights(function, phi, features, moments):
    if function.standardised:
        features = [standardised(z, moments) for z in features]
    return [function.weight(phi, Features(*z)) for z in features]


def plain_step(server, model, deltas, weights):
    """The server's step by weighted updates."""
    params, memory = model
    total = sum(weights)
    mean = jax.tree.map(
        lambda *d: sum(w * x for w, x in zip(weights, d, strict=True)) / total, *deltas
    )
    gradient = jax.tree.map(lambda d: -d, mean)
    direction, memory = SERVERS[server].update(gradient, memory, params)
    return jax.tree.map(lambda p, d: p + LR * d, params, direction), memory


def plain_run(phi, rounds, function, server, federation):
    """The params after some rounds, in plain JAX without fad."""
    params = init_params(jax.random.split(KEY)[0])
    model = params, SERVERS[server].init(params)
    moments = 0.0, jnp.zeros(4), jnp.ones(4)
    there = [c for c in federation.clients if len(c[1])]
    for _ in range(rounds):
        deltas, features = zip(
            *[plain_client(model[0], c, federation.batch) for c in there], strict=True
        )
        weights = plain_weights(function, phi, features, moments)
        model = plain_step(server, model, deltas, weights)
        count = 0.9 * moments[0] + len(there)
        share, z = len(there) / count, jnp.stack(features)
        mean = moments[1] + share * (z.mean(0) - moments[1])
        square = moments[2] + share * ((z**2).mean(0) - moments[2])
        moments = count, mean, square
    return model[0]


def found(algorithm, federation, rounds):
    """The hypergradient of every round, by a meta-optimizer that keeps it."""
    state, slopes = algorithm.init(KEY), []
    step = jax.jit(algorithm.step)
    for t in range(rounds):
        state, _ = step(state, federation.cohort, jax.random.key(t))
        slopes.append(state.meta)
    return slopes, state


def _keep(updates, state, params=None):
    del state, params
    return jax.tree.map(jnp.zeros_like, updates), updates


KEEPS = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), _keep
)


def assert_close(a, b, tol=1e-10):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


@pytest.mark.parametrize(
    ("function", "server", "objective", "rounds"),
    [
        (EXPONENT, "sgd", "cohort", 3),
        (LOGLINEAR, "momentum", "cohort", 3),
        (LOGLINEAR, "sgd", "validation", 2),
    ],
    ids=["exponent", "momentum", "validation"],
)
def test_forward_is_the_gradient_of_the_whole_run(
    x64, federation, function, server, objective, rounds
):
    """The cohort judges the model that it gets, the server the one that it makes."""
    clean = server_rows(federation) if objective == "validation" else None
    options = {"validation": clean, "memory": 1.0, "meta": KEEPS}
    algorithm = make(function, server=server, **options)
    slopes, state = found(algorithm, federation, rounds)
    done = rounds if clean is not None else rounds - 1

    def value(phi):
        params = plain_run(phi, done, function, server, federation)
        if clean is None:
            return pooled(federation, params)
        return jnp.mean(loss(params, clean))

    assert_close(slopes[-1], jax.jit(jax.grad(value))(state.phi))


@pytest.mark.parametrize("memory", [0.0, 0.7])
def test_memory_fades_the_past(x64, federation, memory):
    """The hypergradient is that of each round's phi, faded by the rounds since."""
    clean = server_rows(federation)
    algorithm = make(EXPONENT, validation=clean, memory=memory, meta=KEEPS)
    slopes, state = found(algorithm, federation, 2)
    there = [c for c in federation.clients if len(c[1])]

    def value(phis):
        model = algorithm.init(KEY)[:2]
        for phi in phis:
            made = [plain_client(model[0], c, federation.batch) for c in there]
            weights = [len(c[1]) ** phi for c in there]
            model = plain_step("sgd", model, [delta for delta, _ in made], weights)
        return jnp.mean(loss(model[0], clean))

    first, second = jax.jit(jax.grad(value))([state.phi["exponent"]] * 2)
    assert_close(slopes[1]["exponent"], second + memory * first)


@pytest.mark.parametrize("function", [LOGLINEAR, NETWORK], ids=["four", "many"])
def test_reverse_is_the_gradient_one_round_ahead(x64, federation, function):
    clean = server_rows(federation)
    algorithm = make(function, mode="reverse", validation=clean, meta=KEEPS)
    slopes, state = found(algorithm, federation, 1)

    def value(phi):
        params = plain_run(phi, 1, function, "sgd", federation)
        return jnp.mean(loss(params, clean))

    assert_close(slopes[0], jax.jit(jax.grad(value))(state.phi))


def test_reverse_has_the_closed_form(x64, federation):
    """``-eta <grad F(x'), sum_i (dw_i / dq) (d_i - D) / W>`` with ``w_i = n_i^q``."""
    clean = server_rows(federation)
    algorithm = make(EXPONENT, mode="reverse", validation=clean, meta=KEEPS)
    start = algorithm.init(KEY).params
    slopes, state = found(algorithm, federation, 1)
    there = [c for c in federation.clients if len(c[1])]
    n = np.array([len(c[1]) for c in there])
    deltas = [plain_client(start, c, federation.batch)[0] for c in there]
    flat = np.stack([ravel_pytree(d)[0] for d in deltas])
    w = n**0.6
    mean = w @ flat / w.sum()
    slope = jax.grad(lambda p: jnp.mean(loss(p, clean)))(state.params)
    slope = ravel_pytree(slope)[0]
    want = LR * slope @ ((w * np.log(n)) @ (flat - mean) / w.sum())
    np.testing.assert_allclose(slopes[0]["exponent"], want, rtol=1e-10)


def test_halves_of_a_cohort_judge_each_other(x64, federation):
    algorithm = make(EXPONENT, mode="reverse", meta=KEEPS)
    state, key = algorithm.init(KEY), jax.random.key(5)
    after, metrics = jax.jit(algorithm.step)(state, federation.cohort, key)
    of = [
        int(
            jax.random.bernoulli(
                fad.local.client_key(jax.random.fold_in(key, 1), jnp.asarray(i))
            )
        )
        for i in range(len(federation.clients))
    ]
    there = [i for i, c in enumerate(federation.clients) if len(c[1])]
    assert {of[i] for i in there} == {0, 1}, "this key puts all clients in one half"

    def value(phi):
        total = 0.0
        for half in (0, 1):
            makers = [i for i in there if of[i] == half]
            own = [federation.clients[i] for i in makers]
            deltas = [plain_client(state.params, c, federation.batch)[0] for c in own]
            weights = [len(c[1]) ** phi["exponent"] for c in own]
            params, _ = plain_step("sgd", (state.params, state.server), deltas, weights)
            judges = [federation.clients[i] for i in there if of[i] != half]
            total += sum(len(c[1]) * mean_loss(params, c) for c in judges)
        return total / sum(len(c[1]) for c in federation.clients)

    want, slope = jax.value_and_grad(value)(state.phi)
    np.testing.assert_allclose(metrics["meta_loss"], want, rtol=1e-10)
    assert_close(after.meta, slope)
    whole = plain_run(state.phi, 1, EXPONENT, "sgd", federation)
    assert_close(after.params, whole)


@pytest.mark.parametrize("judged", [False, True])
def test_a_round_has_the_derivatives_of_finite_differences(x64, federation, judged):
    parts = (SERVERS["sgd"], CLIENT, LR, None, "examples", False)
    one_round = Round(loss, LOGLINEAR, *parts)
    params = init_params(KEY)
    model = params, SERVERS["sgd"].init(params), no_moments()

    @fad.program
    def value(phi, cohort):
        if judged:
            return one_round.judged(model, phi, cohort, jax.random.key(5))[0][0]
        (_, (after, _, _)), _ = one_round(model, phi, cohort, KEY)
        return jnp.sum(after["w"] ** 2)

    run = jax.jit(lambda phi: value(phi, federation.cohort))
    check_grads(run, (LOGLINEAR.init(KEY),), 1, ["fwd", "rev"], eps=1e-5)


@pytest.mark.parametrize(
    ("q", "weighting", "mode"),
    [(1.0, "examples", "forward"), (0.0, "uniform", "reverse")],
    ids=["examples", "uniform"],
)
def test_fixed_exponents_are_fedavg(x64, federation, q, weighting, mode):
    mine = make(weight_function("exponent", exponent=q), mode=mode)
    sgd = {"server": SERVERS["sgd"], "client": CLIENT, "server_lr": LR}
    known = fedavg.fedavg(loss, init_params, weighting=weighting, **sgd)
    state = mine.init(KEY)
    want = known.init(KEY)._replace(params=state.params)
    step, known_step = jax.jit(mine.step), jax.jit(known.step)
    for t in range(2):
        key = jax.random.key(t)
        state, _ = step(state, federation.cohort, key)
        want, _ = known_step(want, federation.cohort, key)
    assert_close(state.params, want.params, 1e-12)


def part(federation, chosen):
    return jax.tree.map(lambda a: a[jnp.asarray(chosen)], federation.cohort)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("chosen", [[3], [0]], ids=["one client", "one empty client"])
def test_a_cohort_of_one(federation, mode, chosen):
    """Alone, a weight has no effect; an empty client moves nothing at all."""
    algorithm = make(LOGLINEAR, mode=mode, meta=KEEPS)
    start = algorithm.init(KEY)
    state, metrics = jax.jit(algorithm.step)(start, part(federation, chosen), KEY)
    assert_close(state.meta, jax.tree.map(jnp.zeros_like, state.phi), 1e-6)
    moved = jnp.abs(state.params["w"] - start.params["w"]).max()
    assert (moved > 0) == (chosen == [3])
    assert metrics["bad_clients"] == 0
    assert all(jnp.isfinite(x) for x in metrics.values())


def with_nan(federation, i):
    """The federation with client ``i``'s targets not a number."""
    batches = federation.cohort.unsafe_gather()
    y = batches.examples["y"].at[i].set(jnp.nan)
    return fad.AtClients(batches._replace(examples={**batches.examples, "y": y}))


@pytest.mark.parametrize(
    ("mode", "clean"),
    [("forward", False), ("reverse", False), ("reverse", True)],
    ids=["forward", "halves", "validation"],
)
def test_a_client_that_is_not_finite_counts_for_nothing(x64, federation, mode, clean):
    held = server_rows(federation) if clean else None
    algorithm = make(LOGLINEAR, mode=mode, validation=held, meta=KEEPS)
    state = want = algorithm.init(KEY)
    step, metrics, without = jax.jit(algorithm.step), {}, {}
    for t in range(2):
        key = jax.random.key(t)
        state, metrics = step(state, with_nan(federation, 2), key)
        want, without = step(want, part(federation, [0, 1, 3]), key)
    assert metrics["bad_clients"] == 1
    assert jnp.isnan(metrics["bad_loss_before"])
    np.testing.assert_allclose(metrics["bad_log_examples"], np.log(7), rtol=1e-6)
    assert_close(state, want)
    assert_close(metrics["meta_loss"], without["meta_loss"])


def test_a_negative_weight_is_clamped(x64, federation):
    """Clients whose loss is above phi are left out, with no derivative."""
    cut = 1.2
    function = WeightFunction(
        lambda key: jnp.asarray(cut), lambda phi, z: phi - z.loss_before, False
    )
    algorithm = make(function, mode="reverse", validation=server_rows(federation))
    start, step = algorithm.init(KEY), jax.jit(algorithm.step)
    losses = [float(mean_loss(start.params, c)) for c in federation.clients[1:]]
    left = [x for x in losses if x < cut]
    assert 0 < len(left) < len(losses)
    state, metrics = step(start, federation.cohort, KEY)
    assert metrics["bad_clients"] == len(losses) - len(left)
    bad = [x for x in losses if x >= cut]
    np.testing.assert_allclose(metrics["bad_loss_before"], np.mean(bad))
    kept = [i + 1 for i, x in enumerate(losses) if x < cut]
    same, _ = step(start, part(federation, kept), KEY)
    assert_close(state.params, same.params)
    assert all(jnp.isfinite(x) for x in metrics.values())


def test_a_bad_weight_is_refused_with_its_features(federation):
    algorithm = make(BY_LOSS, on_bad="refuse")
    state = algorithm.init(KEY)
    assert make(BY_LOSS).check is None
    _, metrics = jax.jit(algorithm.step)(state, with_nan(federation, 2), KEY)
    values = {name: float(x) for name, x in metrics.items()}
    message = (
        r"gave 1 of the clients a weight that is negative or not finite\. The means of "
        r"their features: log_examples 1\.94591, loss_before nan, loss_after nan, "
        r'update_norm nan\. .* algorithm\.on_bad = "clamp"'
    )
    check = algorithm.check
    assert check is not None
    with pytest.raises(fad.RunError, match=message):
        check(values)
    check({**values, "bad_clients": 0.0})


@pytest.mark.parametrize(
    ("options", "rounds", "down", "up"),
    [
        ({}, 1, 2, 2),
        ({"memory": 0.0, "validation": True}, 1, 1, 2),
        ({"mode": "reverse", "validation": True}, 2, 2, 1),
        ({"mode": "reverse"}, 4, 5, 4),
    ],
    ids=["forward", "no memory", "reverse", "halves"],
)
def test_communication(options, rounds, down, up):
    data = DataConfig(clients=4, validation_fraction=0.1)
    task = make_task(data, ModelConfig(name="logistic"))
    held = task.validation if options.get("validation") else None
    algorithm = learned_weights(
        task.loss,
        task.init,
        **{**options, "validation": held},
        function=EXPONENT,
        server=SERVERS["sgd"],
        client=CLIENT,
        meta=STILL,
    )
    cohort = task.train.cohort(KEY, 4, batch_size=100)
    args = algorithm.init(KEY), cohort, KEY
    cost, model = fad.plan(algorithm.step)(*args).cost(), 4 * 650
    assert (cost.rounds, cost.same_cohort) == (rounds, rounds > 1)
    assert (cost.bytes_down // model, cost.bytes_up // model) == (down, up)
    assert not fad.check(algorithm.step)(*args).allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1.0}, r"memory: expected in \[0, 1\), got 1.0"),
        ({"meta_lr": -1.0}, "meta_lr: expected >= 0, got -1.0"),
        ({"hidden": (4, 0)}, r"hidden: expected widths >= 1, got \[4, 0\]"),
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_clean_examples_must_be_there():
    task = make_task(DataConfig(clients=4), ModelConfig(name="logistic"))
    match = r'objective = "validation" needs examples at the server'
    with pytest.raises(fad.ConfigError, match=match):
        build(Config(objective="validation"), task)


@pytest.mark.parametrize("on_bad", ["clamp", "refuse"])
def test_in_a_run_bad_clients_are_left_out_or_end_it(tmp_path, capsys, on_bad):
    """The clients' step overflows at every client."""
    path = Path(__file__).parents[2] / "configs" / "digits_learned_weights.toml"
    flags = ["--rounds", "1", "--cohort", "3", "--runs-dir", str(tmp_path)]
    flags += ["--algorithm.client-lr", "1e38", "--algorithm.on-bad", on_bad]
    command = [str(path), *flags, "--no-progress"]
    rows = tmp_path / path.stem / "metrics.jsonl"
    if on_bad == "clamp":
        fad.experiment.main(ALGORITHMS, command)
        assert fad.experiment.read_rows(rows)[0]["bad_clients"] == 3
        return
    with pytest.raises(SystemExit):
        fad.experiment.main(ALGORITHMS, command)
    assert "round 1: algorithms.learned_weights: the weight" in capsys.readouterr().err
    assert fad.experiment.read_rows(rows) == []
