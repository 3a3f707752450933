"""``fad.jit(f).explain`` says what became of a program."""

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
    train,
)

ARGS = make_params, make_data, make_weights


def _explain(fn, *args, chunk: int | None = 3):
    return fad.jit(fn, chunk=chunk).explain(*args)


def test_a_round_is_one_sweep():
    report = _explain(average, *(make() for make in ARGS))
    (sweep,) = report.sweeps
    assert (sweep.clients, sweep.chunk, sweep.sums, sweep.stored) == (7, 3, 2, 0)
    assert sweep.work[-1] == "weigh"
    assert report.unstreamed == ()
    assert (report.name, report.devices) == ("average", 1)


def test_printing():
    text = str(_explain(average, *(make() for make in ARGS)))
    assert text.startswith("fad.jit(average): chunk=3, as asked\n")
    assert "sweep 1: 7 clients, 3 at a time: <lambda>, weigh; 2 sums" in text
    assert "all clients at a time, as asked" in str(
        _explain(average, *(make() for make in ARGS), chunk=None)
    )


def test_recomputation_is_visible():
    """The backward sweep runs the forward work again, unless it is kept."""

    def scalar(remat):
        @fad.program
        def run(w, x):
            def work(p, v):
                return jnp.sin(p * v) ** 2

            y = fad.map(work, fad.broadcast(w), x, remat=remat)
            return jnp.sum(fad.mean(y) ** 2)

        return jax.grad(run)

    args = jnp.ones(8), fad.AtClients(jnp.ones((7, 8)))
    again = _explain(scalar(None), *args)
    assert [s.work for s in again.sweeps] == [("work",), ("work", "work")]
    assert [s.stored for s in again.sweeps] == [0, 0]
    kept = _explain(scalar(False), *args)
    assert [s.work for s in kept.sweeps] == [("work",), ("work",)]
    assert kept.sweeps[0].stored > 0
    assert "client values stored" in str(kept)


def test_loops_are_named():
    report = _explain(jax.grad(train), *(make() for make in ARGS))
    assert {s.where for s in report.sweeps} == {"", "a scan of 2"}
    assert "(in a scan of 2)" in str(report)


def test_matrix_products_over_clients_are_named():
    report = _explain(jax.grad(mean_loss), make_params(), make_data())
    assert sum(s.products for s in report.sweeps) == 1
    assert "1 matrix products over all clients of a chunk" in str(report)


def test_one_sweep_per_number_of_clients():
    def both(params, few, many):
        return mean_loss(params, few) + mean_loss(params, many)

    report = _explain(both, make_params(), make_data(4), make_data(9))
    assert sorted(s.clients for s in report.sweeps) == [4, 9]


# ---- what is not streamed ------------------------------------------------------------


def _printed(x):
    jax.debug.callback(lambda v: None, x)
    return jnp.sin(x)


def _called_back(x):
    return jax.pure_callback(np.sin, jax.typeof(x), x, vmap_method="sequential")


def test_side_effects_are_named_and_still_right():
    @fad.program
    def run(x):
        return fad.sum(fad.map(_printed, x)), fad.sum(fad.map(jnp.cos, x))

    data = fad.AtClients(jnp.arange(7.0))
    report = _explain(run, data)
    (u,) = report.unstreamed
    assert u.name == "_printed"
    assert "side effects" in u.why
    assert f"NOT streamed: _printed: {u.why}" in str(report)
    x = np.arange(7.0)
    out = fad.jit(run, chunk=3)(data)
    np.testing.assert_allclose(out, (np.sin(x).sum(), np.cos(x).sum()), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_pure_callback_is_streamed(chunk):
    run = fad.program(lambda x: fad.sum(fad.map(_called_back, x)))
    data = fad.AtClients(jnp.arange(7.0))
    assert _explain(run, data, chunk=chunk).unstreamed == ()
    out = fad.jit(run, chunk=chunk)(data)
    np.testing.assert_allclose(out, np.sin(np.arange(7.0)).sum(), rtol=1e-5)


@jax.custom_batching.custom_vmap
def _custom(w, x):
    return w * fad.program(fad.sum)(fad.AtClients(x))


@_custom.def_vmap
def _(size, batched, w, x):
    del size
    return jax.vmap(_custom.fun, [0 if b else None for b in batched])(w, x), True


def test_unknown_containers_are_named():
    def run(w, data):
        return _custom(w, data.unsafe_gather())

    data = fad.AtClients(jnp.arange(7.0))
    report = _explain(fad.program(run), jnp.asarray(2.0), data)
    out = fad.jit(fad.program(run), chunk=3)(jnp.asarray(2.0), data)
    (u,) = report.unstreamed
    assert "custom_vmap" in u.why
    assert out == 42.0


def test_a_gathered_value_is_computed_at_once_and_right():
    @fad.program
    def run(x):
        y = fad.map(jnp.sin, x)
        return jnp.sort(y.unsafe_gather()), fad.sum(y)

    out = fad.jit(run, chunk=3)(fad.AtClients(jnp.arange(7.0)))
    expected = np.sort(np.sin(np.arange(7.0)))
    np.testing.assert_allclose(out[0], expected, rtol=1e-6)
