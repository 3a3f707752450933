"""Clients over the devices of a mesh: the numbers of one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fad
from tests.compile.programs import (
    average,
    make_data,
    make_params,
    make_weights,
    mean_loss,
    train,
)
from tests.subjects import assert_same, gather


def _mesh(devices=8, kind=AxisType.Auto):
    return jax.make_mesh((devices,), ("clients",), axis_types=(kind,))


def _check(fn, *args, mesh=None, chunks=(1, 3), tol=1e-6):
    expected = fad.jit(fn, chunk=1)(*args)
    for chunk in chunks:
        actual = fad.jit(fn, chunk=chunk, mesh=mesh or _mesh())(*args)
        at_clients = lambda v: isinstance(v, fad.AtClients)  # noqa: E731
        assert jax.tree.structure(actual, at_clients) == jax.tree.structure(
            expected, at_clients
        )
        assert_same(jax.device_get(gather(actual)), gather(expected), tol=tol)


def _text(fn, *args, chunk=1, mesh=None) -> Any:
    return (
        fad.jit(fn, chunk=chunk, mesh=mesh or _mesh()).lower(*args).compile().as_text()
    )


# ---- the numbers of one device -------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 10, 16])
def test_rounds_of_any_number_of_clients(n):
    _check(average, make_params(), make_data(n), make_weights(n))


def test_chunks_that_do_not_divide_a_devices_clients():
    _check(average, make_params(), make_data(37), make_weights(37), chunks=(2, None))


@pytest.mark.parametrize("n", [10, 16])
def test_gradients(n):
    args = make_params(), make_data(n), make_weights(n), jnp.asarray(0.1)
    _check(jax.value_and_grad(train, (0, 2, 3)), *args, chunks=(1,))


def test_one_device_and_fewer_than_all():
    for devices in (1, 2):
        mesh = jax.make_mesh(
            (devices,),
            ("clients",),
            axis_types=(AxisType.Auto,),
            devices=jax.devices()[:devices],
        )
        _check(
            average,
            make_params(),
            make_data(5),
            make_weights(5),
            mesh=mesh,
            chunks=(2,),
        )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_kinds_of_mesh_axes(kind):
    _check(
        jax.value_and_grad(mean_loss),
        make_params(),
        make_data(10),
        mesh=_mesh(kind=kind),
    )


@pytest.mark.parametrize("n", [3, 10, 16])
def test_outputs_at_the_clients(n):
    @fad.program
    def run(params, data):
        scores = fad.map(lambda p, d: d["x"] @ p["w"], fad.broadcast(params), data)
        return scores, fad.map(jnp.sum, scores), fad.broadcast(params), data

    _check(run, make_params(), make_data(n))


@pytest.mark.parametrize("n", [10, 16])
def test_client_state_and_a_cohort_each(n):
    @fad.program
    def step(params, state, cohort):
        work = lambda p, s, d: p["w"] + s - 0.1 * d["x"].T @ d["y"]  # noqa: E731
        new = fad.map(work, fad.broadcast(params), state, cohort)
        state = fad.map(lambda s, v: s + 0.1 * jnp.sin(v), state, new)
        return {"w": fad.mean(new)}, state

    def run(params, state, cohorts):
        def body(carry, cohort):
            params, state = step(*carry, cohort)
            return (params, state), mean_loss(params, cohort)

        return jax.lax.scan(body, (params, state), cohorts)

    state = fad.AtClients(jnp.zeros((n, 3, 2)))
    args = make_params(), state, make_data(n, lead=(2,))
    _check(run, *args)
    _check(jax.grad(lambda *a: run(*a)[1].sum(), (0, 1, 2)), *args, chunks=(2,))


@pytest.mark.parametrize("n", [10, 16])
def test_a_cond_on_client_values(n):
    @fad.program
    def run(x):
        test = fad.sum(x).sum() > 0
        out = jax.lax.cond(test, lambda d: fad.map(jnp.cos, d), lambda d: d, x)
        return fad.sum(fad.map(jnp.sin, out)), out

    _check(run, fad.AtClients(jnp.linspace(-1.0, 2.0, 2 * n).reshape(n, 2)))


def test_loops():
    @fad.program
    def run(x):
        halve = lambda d: fad.map(lambda v: v / 2, d)  # noqa: E731
        return jax.lax.while_loop(lambda d: fad.sum(d) > 1, halve, x)

    _check(run, fad.AtClients(jnp.ones(10)))


def test_keys_and_whole_numbers():
    @fad.program
    def run(keys, x):
        noise = fad.map(lambda k, v: jax.random.normal(k) * v.astype(float), keys, x)
        new = fad.map(lambda k: jax.random.fold_in(k, 1), keys)
        return fad.sum(x), fad.mean(x), fad.sum(noise), new

    keys = fad.AtClients(jax.random.split(jax.random.key(0), 10))
    _check(run, keys, fad.AtClients(jnp.arange(10)))


def test_nan_clients_of_weight_zero_and_rows_that_fill_up():
    x = jnp.arange(10.0).at[9].set(jnp.nan)  # the last one fills devices up
    weights = fad.AtClients(jnp.ones(10).at[9].set(0.0))
    _check(
        fad.program(fad.weighted_mean), fad.AtClients(x), weights, chunks=(1, 2, None)
    )


@pytest.mark.usefixtures("x64")
def test_double_precision():
    _check(average, make_params(), make_data(10), make_weights(10), tol=1e-12)
    counts = fad.AtClients(jnp.arange(10, dtype=jnp.int32))
    _check(fad.program(fad.sum), counts, chunks=(1, 2))


def test_clients_that_fill_up_never_count():
    one = fad.AtClients(jnp.ones(9))
    for chunk in (1, 2, None):
        run = fad.jit(fad.program(fad.sum), chunk=chunk, mesh=_mesh())
        assert float(run(one)) == 9.0


def test_server_work_on_gathered_client_values():
    """A scatter over clients that the mesh does not divide, in the gradient."""

    @fad.program
    def run(x):
        made = fad.map(jnp.sin, x).unsafe_gather()
        back = fad.AtClients(jnp.sort(made, 0) + jnp.flip(made, 0))
        return fad.sum(back) + made[2] + made.max(0)

    x = fad.AtClients(jnp.asarray(np.random.default_rng(0).normal(size=(10, 3))))
    _check(run, x)
    _check(jax.grad(lambda x: run(x).sum()), x)


def test_cohorts_sampled_at_the_server():
    one = fad.program(lambda w, d: w + fad.mean(fad.map(lambda v: jnp.sin(w * v), d)))

    def run(w, data, key):
        def body(w, key):
            chosen = jax.random.permutation(key, 10)[:6]
            return one(w, fad.AtClients(data.unsafe_gather()[chosen])), None

        return jax.lax.scan(body, w, jax.random.split(key, 3))[0]

    x = fad.AtClients(jnp.asarray(np.random.default_rng(0).normal(size=(10, 3))))
    args = jnp.ones(3), x, jax.random.key(0)
    _check(run, *args)
    _check(jax.grad(lambda *a: run(*a).sum(), (0, 1)), *args, chunks=(1,), tol=1e-5)


def test_calls_feed_one_another():
    run = fad.jit(average, chunk=2, mesh=_mesh())
    params, data, weights = make_params(), make_data(10), make_weights(10)
    twice = run(run(params, data, weights), data, weights)
    expected = average(average(params, data, weights), data, weights)
    assert_same(jax.device_get(twice), expected, tol=1e-6)


# ---- what moves ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 16])
@pytest.mark.parametrize("fn", [average, jax.grad(mean_loss), jax.grad(train)])
def test_nothing_is_gathered(fn, n):
    args = make_params(), make_data(n), make_weights(n)
    text = _text(fn, *(args[:2] if fn.__name__ == "mean_loss" else args))
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "all-reduce" in text


def test_the_clients_data_is_split():
    run = fad.jit(average, chunk=1, mesh=_mesh())
    lowered = run.lower(make_params(), make_data(16), make_weights(16))
    shardings = jax.tree.leaves(lowered.compile().input_shardings)
    split = [s for s in shardings if not s.is_fully_replicated]
    assert len(split) == 3


# ---- other axes ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_model_split_over_another_axis(kind):
    mesh = jax.make_mesh((4, 2), ("clients", "model"), axis_types=(kind, kind))
    params = make_params()
    expected = fad.jit(average, chunk=1)(params, make_data(10), make_weights(10))
    place = NamedSharding(mesh, PartitionSpec(None, "model"))
    split = jax.device_put(params, place)
    run = fad.jit(average, chunk=2, mesh=mesh)
    actual = run(split, make_data(10), make_weights(10))
    assert_same(jax.device_get(actual), expected, tol=1e-6)


def test_explain_says_how_many_devices_share_the_clients():
    report = fad.jit(average, chunk=1, mesh=_mesh()).explain(
        make_params(), make_data(10), make_weights(10)
    )
    assert report.devices == 8
    assert "clients over 8 devices" in str(report)


def test_the_chunk_is_of_a_devices_clients():
    args = make_params(), make_data(16), make_weights(16)
    report = fad.jit(average, chunk=None, mesh=_mesh()).explain(*args)
    assert [s.chunk for s in report.sweeps] == [2]


def test_more_arguments_than_arrays():
    def run(params, data, scale, *, kind, power=1):
        assert kind == "plain"
        return mean_loss(params, data) * scale**power

    expected = run(make_params(), make_data(10), 2.0, kind="plain")
    compiled = fad.jit(run, chunk=1, mesh=_mesh(), static_argnames=("kind", "power"))
    out = compiled(make_params(), make_data(10), 2.0, kind="plain", power=1)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
