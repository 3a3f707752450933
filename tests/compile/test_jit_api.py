"""``fad.jit`` behaves like ``jax.jit`` in everything else."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.compile.programs import (
    average,
    make_data,
    make_params,
    make_weights,
    mean_loss,
)
from tests.subjects import assert_same


def _data(n=5):
    return fad.AtClients(jnp.arange(1.0 * n))


@fad.program
def _scaled(w, data):
    return w * fad.sum(data)


# ---- caching ---------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [2, None, "auto"])
def test_a_second_call_does_not_trace(chunk):
    traces = []

    def run(w, data):
        traces.append(1)
        return _scaled(w, data)

    compiled = fad.jit(run, chunk=chunk)
    assert compiled(2.0, _data()) == 20.0
    count = len(traces)
    assert compiled(3.0, _data()) == 30.0
    assert len(traces) == count
    assert compiled(2.0, _data(3)) == 6.0
    assert len(traces) > count


def test_a_second_call_on_a_mesh_does_not_trace():
    traces = []

    def run(w, data):
        traces.append(1)
        return _scaled(w, data)

    mesh = jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    compiled = fad.jit(run, chunk=2, mesh=mesh)
    out = compiled(2.0, _data())
    count = len(traces)
    assert compiled(out, _data()) == 200.0
    assert compiled(2.0, _data()) == 20.0
    assert len(traces) <= count + 2  # a result is strongly typed, a number is not


def test_a_fixed_chunk_traces_as_often_as_jax_does():
    traces = []

    def run(w, data):
        traces.append(1)
        return _scaled(w, data)

    fad.jit(run, chunk=2)(2.0, _data())
    assert len(traces) == 1


def test_clear_cache_traces_again():
    traces = []

    def run(w, data):
        traces.append(1)
        return _scaled(w, data)

    compiled = fad.jit(run, chunk=2)
    compiled(2.0, _data())
    compiled.clear_cache()
    assert compiled(2.0, _data()) == 20.0
    assert len(traces) == 2


# ---- arguments -----------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [2, "auto"])
def test_static_arguments_by_position_and_by_name(chunk):
    def run(data, kind, *, power=1):
        assert isinstance(kind, str)
        assert isinstance(power, int)
        work = lambda x: (jnp.sin(x) if kind == "sin" else x) ** power  # noqa: E731
        return fad.program(lambda d: fad.sum(fad.map(work, d)))(data)

    compiled = fad.jit(run, chunk=chunk, static_argnames=("kind", "power"))
    x = np.arange(5.0)
    np.testing.assert_allclose(compiled(_data(), "sin"), np.sin(x).sum(), rtol=1e-6)
    np.testing.assert_allclose(compiled(_data(), kind="id"), 10.0)
    np.testing.assert_allclose(compiled(_data(), "id", power=2), 30.0)
    one = fad.jit(run, chunk=chunk, static_argnames="kind")
    np.testing.assert_allclose(one(_data(), kind="id"), 10.0)


def test_python_numbers_and_keyword_arguments():
    def run(w, data, flag=False, *, shift=0):
        return jnp.where(flag, w, -w) * fad.program(fad.sum)(data) + shift

    for chunk in (2, "auto"):
        compiled = fad.jit(run, chunk=chunk)
        assert compiled(2.0, _data()) == -20.0
        assert compiled(2.0, data=_data(), flag=True, shift=1) == 21.0


def test_numpy_arguments_and_none():
    def run(w, data, nothing=None):
        assert nothing is None
        return _scaled(w, data)

    numbers = fad.AtClients(np.arange(5, dtype=np.float32))
    assert fad.jit(run, chunk=2)(np.float32(2.0), numbers, None) == 20.0


def test_no_arguments():
    @fad.program(clients=4)
    def run():
        return fad.sum(fad.map(lambda: jnp.float32(2.0)))

    for chunk in (1, 3, None, "auto"):
        assert fad.jit(run, chunk=chunk)() == 8.0


def test_donated_arguments():
    def run(w, data):
        return w + fad.program(fad.sum)(data)

    for chunk in (2, "auto"):
        w = jnp.ones(3)
        out = fad.jit(run, chunk=chunk, donate_argnums=0)(w, _data())
        assert_same(out, jnp.full(3, 11.0))
        assert w.is_deleted()
    both = fad.jit(run, chunk=2, donate_argnums=(0,))
    assert_same(both(both(jnp.ones(3), _data()), _data()), jnp.full(3, 21.0))


def test_donated_client_arguments_under_auto():
    def run(state, data):
        new = fad.program(lambda s, d: fad.map(lambda a, b: a + b, s, d))(state, data)
        return new

    out = fad.jit(run, donate_argnums=0)(_data(), _data())
    assert_same(out, 2 * jnp.arange(5.0))


# ---- what may be compiled ------------------------------------------------------------


def test_methods_partials_and_callables():
    class Model:
        scale = 2.0

        def run(self, data):
            return self.scale * fad.program(fad.sum)(data)

        def __call__(self, data):
            return self.run(data)

    assert fad.jit(Model().run, chunk=2)(_data()) == 20.0
    assert fad.jit(Model(), chunk=2)(_data()) == 20.0
    partial = fad.jit(functools.partial(_scaled, 3.0), chunk=2)
    assert partial(_data()) == 30.0
    assert "partial" in str(partial.explain(_data()))


def test_functions_without_communication():
    run = fad.jit(lambda x: jnp.sin(x) + 1)
    assert_same(run(jnp.arange(3.0)), jnp.sin(jnp.arange(3.0)) + 1)
    assert run.explain(jnp.arange(3.0)).sweeps == ()


def test_a_compiled_function_keeps_its_name_and_doc():
    compiled: Any = fad.jit(average, chunk=1)
    assert compiled.__name__ == "average"
    assert compiled.__doc__ == average.__doc__


def test_compiled_functions_inside_one_another():
    inner = fad.jit(mean_loss, chunk=1)

    def run(params, data):
        return inner(params, data) + inner(params, data)

    expected = 2 * mean_loss(make_params(), make_data())
    outer = fad.jit(run, chunk=3)
    assert_same(outer(make_params(), make_data()), expected, tol=1e-6)
    assert {s.chunk for s in outer.explain(make_params(), make_data()).sweeps} == {3}
    assert_same(jax.jit(run)(make_params(), make_data()), expected, tol=1e-6)


def test_plan_and_check_see_through_it():
    args = make_params(), make_data(), make_weights()
    compiled = fad.jit(average, chunk=1)
    assert fad.plan(compiled)(*args).cost() == fad.plan(average)(*args).cost()
    fad.check(compiled)(*args)

    def leak(data):
        return data.unsafe_gather().max()

    with pytest.raises(fad.PlacementError):
        fad.check(fad.jit(fad.program(leak), chunk=1))(_data())


def test_errors_of_the_function_are_not_changed():
    def broken(data):
        raise KeyError("mine")

    for chunk in (2, "auto"):
        with pytest.raises(KeyError, match="mine"):
            fad.jit(broken, chunk=chunk)(_data())
    with pytest.raises(fad.PlacementError, match="number of clients is not known"):
        fad.jit(average, chunk=1)(make_params(), make_data().unsafe_gather(), 1.0)


# ---- stages --------------------------------------------------------------------------


def test_stages():
    args = make_params(), make_data(), make_weights()
    compiled = fad.jit(average, chunk=2)
    expected = average(*args)
    lowered = compiled.lower(*args)
    assert_same(lowered.compile()(*args), expected, tol=1e-6)
    memory: Any = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes > 0
    assert "while" in lowered.as_text()
    shapes = compiled.eval_shape(*args)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
    assert "scan" in str(compiled.trace(*args).jaxpr)


def test_lowering_for_types_alone():
    args = jax.eval_shape(lambda: (make_params(), make_data(), make_weights()))
    for chunk in (2, None, "auto"):
        compiled = fad.jit(average, chunk=chunk).lower(*args).compile()
        out = compiled(make_params(), make_data(), make_weights())
        expected = average(make_params(), make_data(), make_weights())
        assert_same(out, expected, tol=1e-6)


def test_transformations_of_the_compiled_function():
    compiled = fad.jit(_scaled, chunk=2)
    assert jax.grad(compiled)(2.0, _data()) == 10.0
    assert jax.jvp(lambda w: compiled(w, _data()), (2.0,), (1.0,))[1] == 10.0
    many = jax.vmap(compiled, (0, None))(jnp.arange(3.0), _data())
    assert_same(many, 10 * jnp.arange(3.0))
    _, ys = jax.lax.scan(lambda c, w: (c, compiled(w, _data())), 0, jnp.arange(3.0))
    assert_same(ys, 10 * jnp.arange(3.0))


def test_changing_precision_compiles_again():
    compiled = fad.jit(_scaled, chunk=2)
    assert compiled(2.0, _data()).dtype == jnp.float32
    with jax.enable_x64(True):
        data = fad.AtClients(jnp.arange(5.0))
        assert compiled(2.0, data).dtype == jnp.float64
