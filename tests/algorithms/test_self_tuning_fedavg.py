"""Learned hyper-parameters: their hypergradients are exact, and add no round."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import _safeguard
from algorithms._hyper import free, values
from algorithms._optimizers import optimizers_of
from algorithms.self_tuning_fedavg import Config, build, self_tuning_fedavg
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import python_round

pytestmark = pytest.mark.once

STILL = optax.sgd(0.0)  # a meta-optimizer that leaves theta where it is
SERVERS = ("sgd", "momentum", "adam")
LAYERS = {"w": 1.0, "b": 2.0}
START = {"server_lr": 0.5, "layer_lrs": LAYERS, "server_b1": 0.8, "client_lr": 0.2}


def optimizers(server):
    config = Config(server=server, server_lr=0.5, client_lr=0.2, server_eps=1e-2)
    return functools.partial(optimizers_of, config)


def make(start=None, *, server="sgd", meta=STILL, **options):
    return self_tuning_fedavg(
        loss,
        init_params,
        optimizers=optimizers(server),
        start={"server_lr": 0.5} if start is None else start,
        meta=meta,
        **options,
    )


def pooled_loss(params, federation):
    x = jnp.concatenate([jnp.asarray(x) for x, _ in federation.clients])
    y = jnp.concatenate([jnp.asarray(y) for _, y in federation.clients])
    return jnp.mean(loss(params, {"x": x, "y": y}))


def plain_losses(theta, rounds, server, federation, theta_of=lambda t, theta: theta):
    """The pooled loss before each round, in plain JAX without fad."""
    params, losses = init_params(jax.random.key(0)), []
    memory = optimizers(server)(values(theta))[0].init(params)
    for t in range(rounds):
        losses.append(pooled_loss(params, federation))
        optimizer, client = optimizers(server)(values(theta_of(t, theta)))
        delta = python_round(federation, params, client=client)
        gradient = jax.tree.map(lambda d: -d, delta)
        change, memory = optimizer.update(gradient, memory, params)
        params = optax.apply_updates(params, change)
    return jnp.stack(losses)


def slopes(algorithm, federation, count, cohort=None):
    state, found = algorithm.init(jax.random.key(0)), []
    step = jax.jit(algorithm.step)
    for t in range(count):
        state, metrics = step(
            state, federation.cohort if cohort is None else cohort, jax.random.key(t)
        )
        found.append({k: v for k, v in metrics.items() if k.startswith("slope_")})
    return found, state


def summed(gradient):
    return {
        f"slope_{k}": sum(jnp.sum(g) for g in jax.tree.leaves(v))
        for k, v in gradient.items()
    }


@pytest.mark.parametrize("server", SERVERS)
def test_full_memory_is_the_gradient_of_the_whole_run(x64, federation, server):
    found, _ = slopes(make(server=server, memory=1.0), federation, 4)
    theta = free({"server_lr": 0.5})
    for t in (0, 1, 3):
        want = jax.grad(lambda th, t=t: plain_losses(th, t + 1, server, federation)[t])
        np.testing.assert_allclose(
            found[t]["slope_server_lr"], want(theta)["server_lr"], 1e-10, 1e-14
        )


def test_every_hyper_parameter_at_once(x64, federation):
    found, _ = slopes(make(START, server="momentum", memory=1.0), federation, 3)
    want = jax.grad(lambda th: plain_losses(th, 3, "momentum", federation)[2])
    for name, value in summed(want(free(START))).items():
        np.testing.assert_allclose(found[2][name], value, rtol=1e-10)


@pytest.mark.parametrize("mode", ["window", "mixed", "reverse"])
def test_windows_in_every_mode(x64, federation, mode):
    """Two windows of three rounds; the second starts from the first's model."""
    algorithm = make(START, server="momentum", mode=mode, lookahead=3)
    three = jax.tree.map(lambda x: jnp.concatenate([x] * 3), federation.cohort)
    found, _ = slopes(algorithm, federation, 2, three)
    theta = free(START)

    def second(th):
        own = lambda t, th: jax.lax.stop_gradient(th) if t < 3 else th  # noqa: E731
        return plain_losses(th, 6, "momentum", federation, own)[3:].mean()

    first = jax.grad(lambda th: plain_losses(th, 3, "momentum", federation).mean())
    for t, want in enumerate((first(theta), jax.grad(second)(theta))):
        for name, value in summed(want).items():
            np.testing.assert_allclose(found[t][name], value, rtol=1e-10)


def test_memory_fades_the_past(x64, federation):
    """The hypergradient is the sum of each step's, faded by the rounds since."""
    found, _ = slopes(make(memory=0.7), federation, 4)
    theta, want = free({"server_lr": 0.5}), 0.0
    for past in range(3):

        def one(t, th, past=past):
            return th if t == past else jax.lax.stop_gradient(th)

        effect = jax.grad(lambda th: plain_losses(th, 4, "sgd", federation, one)[3])
        want += 0.7 ** (3 - past) * effect(theta)["server_lr"]
    np.testing.assert_allclose(found[3]["slope_server_lr"], want, rtol=1e-10)


def test_no_further_round(federation):
    algorithm = make()
    state = algorithm.init(jax.random.key(0))
    cost = fad.plan(algorithm.step)(state, federation.cohort, jax.random.key(0)).cost()
    model = 4 * 4  # three weights and a bias in float32
    assert cost.rounds == 1
    assert cost.client_state_bytes == 0
    assert cost.bytes_down == 2 * model
    # The update and the loss with their tangents, and the examples, twice.
    assert cost.bytes_up == 2 * model + 4 * 4


def test_reverse_needs_the_clients_again(federation):
    algorithm = make(mode="reverse", lookahead=2)
    state = algorithm.init(jax.random.key(0))
    plan = fad.plan(algorithm.step)(state, federation.cohort, jax.random.key(0))
    # The first loss and the last update do not need the way back.
    assert plan.cost().rounds == 3
    assert plan.cost().same_cohort


def test_the_step_moves_towards_a_better_one(federation):
    adam = optax.adam(0.2, b1=0.5, b2=0.9)
    _, state = slopes(make({"server_lr": 0.05}, meta=adam), federation, 8)
    _, still = slopes(make({"server_lr": 0.05}), federation, 8)
    assert state.theta["server_lr"] > still.theta["server_lr"]
    assert pooled_loss(state.params, federation) < pooled_loss(still.params, federation)


def steps(algorithm, federation, count):
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    for t in range(count):
        before = state
        state, metrics = step(before, federation.cohort, jax.random.key(t))
        yield before, state, metrics


def test_a_step_far_too_large_is_undone(federation):
    algorithm = make({"server_lr": 2.0}, reject=1e-9, shrink=4.0)  # undo any step
    (first, moved, kept), (_, back, metrics) = steps(algorithm, federation, 2)
    assert (int(kept["undone"]), int(metrics["undone"])) == (0, 1)
    want = jax.tree.map(lambda a, x: a + (x - a) / 4, first.params, moved.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), back.params, want)
    np.testing.assert_allclose(jnp.exp(back.theta["server_lr"]), 0.5, rtol=1e-6)
    assert all(not t.any() for t in back.carry.tangent)


def test_a_step_to_no_number_is_undone(federation):
    algorithm = make({"server_lr": 1e38})
    last = algorithm.init(jax.random.key(0))
    for _, state, metrics in steps(algorithm, federation, 4):
        assert all(
            np.isfinite(x).all() for x in jax.tree.leaves((state.params, metrics))
        )
        _safeguard.check({k: float(v) for k, v in metrics.items()})
        last = state
    assert float(last.theta["server_lr"]) < np.log(1e38)


def test_a_tangent_that_overflows_is_dropped(federation):
    algorithm = make()
    state = algorithm.init(jax.random.key(0))
    carry = state.carry._replace(tangent=[jnp.inf + t for t in state.carry.tangent])
    new, _ = algorithm.step(
        state._replace(carry=carry), federation.cohort, jax.random.key(0)
    )
    assert all(not t.any() for t in new.carry.tangent)
    assert new.theta == state.theta
    assert not jnp.array_equal(new.params["w"], state.params["w"])


def test_steps_undone_in_a_row_end_the_run(federation):
    """A client whose loss is no number: nothing is lost, and the run says so."""
    batches = federation.cohort.unsafe_gather()
    x = batches.examples["x"].at[1].set(jnp.nan)
    spoilt = fad.AtClients(batches._replace(examples={**batches.examples, "x": x}))
    algorithm = make()
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    metrics = {}
    for _ in range(20):
        state, metrics = step(state, spoilt, jax.random.key(0))
    assert np.isfinite(state.params["w"]).all()
    message = (
        r"self_tuning_fedavg: 20 server steps in a row were undone, since the clients' "
        r"loss, .* was no number\. .* clients' data that is not finite, is the likely"
    )
    with pytest.raises(fad.RunError, match=message):
        _safeguard.check({k: float(v) for k, v in metrics.items()})


def scaled_cohort(federation, factor):
    """The same clients with other targets, so with a loss of another size."""
    batches = federation.cohort.unsafe_gather()
    examples = {**batches.examples, "y": factor * batches.examples["y"]}
    return fad.AtClients(batches._replace(examples=examples))


def test_clients_of_another_size_of_loss_do_not_end_learning(federation):
    algorithm = make()
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    undone = []
    for t in range(12):
        cohort = scaled_cohort(federation, 100.0 if t else 1.0)
        state, metrics = step(state, cohort, jax.random.key(0))
        undone.append(int(metrics["undone"]))
    assert undone[1:6] == [1, 2, 3, 4, 0]
    assert not any(undone[6:])


def test_a_cohort_without_examples_is_not_judged(federation):
    batches = federation.cohort.unsafe_gather()
    nobody = fad.AtClients(batches._replace(mask=jnp.zeros_like(batches.mask)))
    algorithm = make()
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    for cohort in (nobody, federation.cohort, nobody, federation.cohort):
        state, metrics = step(state, cohort, jax.random.key(0))
        assert int(metrics["undone"]) == 0
    assert float(state.guard.worst) > 0


def test_a_negative_loss_that_falls_is_kept(federation):
    algorithm = self_tuning_fedavg(
        lambda params, examples: loss(params, examples) - 10,
        init_params,
        optimizers=optimizers("sgd"),
        start={"server_lr": 0.5},
        meta=STILL,
    )
    assert not any(int(m["undone"]) for *_, m in steps(algorithm, federation, 3))


def test_without_a_server_step_the_clients_shrink(federation):
    algorithm = make({"client_lr": 0.2}, reject=1e-9)
    _, (_, state, metrics) = steps(algorithm, federation, 2)
    assert int(metrics["undone"]) == 1
    np.testing.assert_allclose(jnp.exp(state.theta["client_lr"]), 0.05, rtol=1e-6)


@pytest.mark.parametrize(("bad_round", "kept"), [(0, False), (1, True)])
def test_a_window_that_diverges_inside_keeps_where_it_began(bad_round, kept):
    params, anchor = jnp.array(3.0), jnp.array(1.0)
    nan = jnp.array(jnp.nan)
    estimate = fad.estimators.Estimate(
        nan, None, None, jnp.array(False), jnp.array(bad_round), None
    )
    verdict, guard = _safeguard.judge(
        _safeguard.begin(anchor),
        estimate,
        params=params,
        seen=jnp.array(4.0),
        reject=2.0,
    )
    assert not verdict.good
    back = _safeguard.undone(guard, verdict, params, 2.0)
    assert float(back) == (3.0 if kept else 2.0)


def test_bfloat16_models_learn_momentum(federation):
    def init_half(key):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params(key))

    def half_loss(params, examples):
        whole = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return loss(whole, examples)

    algorithm = self_tuning_fedavg(
        half_loss,
        init_half,
        optimizers=optimizers("momentum"),
        start={"server_b1": 0.5},
        meta=optax.sgd(0.1),
    )
    *_, (_, state, metrics) = steps(algorithm, federation, 3)
    assert state.params["w"].dtype == jnp.bfloat16
    assert float(metrics["slope_server_b1"]) != 0


@pytest.mark.parametrize("mode", ["window", "mixed", "reverse"])
def test_a_window_of_one_round(mode):
    message = f"lookahead=1: expected at least 2 rounds in mode '{mode}'"
    with pytest.raises(fad.FadError, match=message):
        make(mode=mode)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"server_lr": 0.0}, r"start\['server_lr'\]: expected in \(0, inf\), got 0.0"),
        ({"server_b1": 1.0}, r"start\['server_b1'\]: expected in \(0, 1\), got 1.0"),
    ],
)
def test_a_start_that_nothing_stands_for(start, message):
    with pytest.raises(fad.FadError, match=message):
        make(start).init(jax.random.key(0))


def test_values_and_what_stands_for_them(x64):
    back = values(free(START))
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b), back, START))


@pytest.mark.parametrize("learn", [("layer_lrs",), ("server_b1", "client_lr")])
def test_what_a_config_learns(federation, learn):
    task: Any = types.SimpleNamespace(loss=loss, init=init_params)
    config = Config(learn=learn, server="momentum")
    algorithm = build(config, task)
    state = algorithm.init(jax.random.key(0))
    _, metrics = jax.jit(algorithm.step)(state, federation.cohort, jax.random.key(0))
    assert set(learn) <= set(metrics)
    assert float(metrics[learn[0]]) == pytest.approx(0.9 if len(learn) > 1 else 1.0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("memory", 0.0, r"memory: expected in \(0, 1\], got 0.0"),
        ("lookahead", 0, r"lookahead: expected in \[1, inf\), got 0"),
        ("reject", 1.0, r"reject: expected in \(1, inf\), got 1.0"),
        ("shrink", 1.0, r"shrink: expected in \(1, inf\), got 1.0"),
        ("meta_lr", -0.1, r"meta_lr: expected in \[0, inf\), got -0.1"),
        ("server_lr", 0.0, r"server_lr: expected in \(0, inf\), got 0.0"),
        ("learn", (), "learn: expected at least one of"),
        ("learn", ("server_b1",), "learn: server='sgd' has no server_b1 to learn"),
    ],
)
def test_ranges(option, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{option: value})


def test_a_cohort_that_the_rounds_do_not_divide(federation):
    algorithm = make(mode="window", lookahead=3)
    message = r"self_tuning_fedavg: cohort: lookahead=3 does not divide its 4 clients"
    with pytest.raises(fad.FadError, match=message):
        algorithm.step(
            algorithm.init(jax.random.key(0)), federation.cohort, jax.random.key(0)
        )
