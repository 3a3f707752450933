"""Programs that a review found wrong once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad

CHUNKS = (1, 2, None)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_whole_numbers_are_divided_for_each_client(chunk):
    data = fad.AtClients(jnp.array([1, 3, 5, -7], jnp.int32))
    halves = fad.program(lambda d: fad.sum(fad.map(lambda x: x // 2, d)))
    assert int(fad.jit(halves, chunk=chunk)(data)) == int(jax.jit(halves)(data)) == -1


@pytest.mark.parametrize("chunk", CHUNKS)
def test_weights_are_not_rounded_to_short_operands(chunk):
    x = np.random.default_rng(0).normal(size=(4, 5, 3))
    contract = (((0,), (0,)), ((), ()))

    @fad.program
    def f(d, n):
        def client(x):
            return jax.lax.dot_general(
                x, x, contract, preferred_element_type=jnp.float32
            )

        return fad.weighted_mean(fad.map(client, d), n)

    n = fad.AtClients(jnp.array([301.0, 1.37, 257, 1001]) * 1000)
    d = fad.AtClients(jnp.asarray(x, jnp.float16))
    np.testing.assert_allclose(
        fad.jit(f, chunk=chunk)(d, n), jax.jit(f)(d, n), rtol=1e-5
    )


def _closing(jit):
    @fad.program
    def loss(w, d):
        sent = fad.broadcast(w)
        return fad.mean(fad.map(lambda w, x: jax.nn.relu(w * x).sum(), sent, d))

    data = fad.AtClients(jnp.arange(12.0).reshape(4, 3) - 6)
    return jax.grad(lambda w: jit(lambda d: loss(w, d))(data))(jnp.arange(3.0))


@pytest.mark.parametrize("chunk", [*CHUNKS, "auto"])
def test_a_closed_over_trace_keeps_custom_derivatives(chunk):
    streamed = _closing(lambda f: fad.jit(f, chunk=chunk))
    np.testing.assert_allclose(streamed, _closing(jax.jit), rtol=1e-6)


def test_a_closed_over_trace_on_a_mesh_is_refused():
    mesh = jax.make_mesh((2,), ("clients",))
    with pytest.raises(fad.FadError, match="closes over a value of the trace around"):
        _closing(lambda f: fad.jit(f, chunk=1, mesh=mesh))


@fad.program
def personal(w, d):
    def body(s, x):
        m = fad.mean(s)
        return fad.map(
            lambda s, m, x: s - 0.1 * (s - m) - 0.1 * x, s, fad.broadcast(m), d
        ), x

    start = fad.broadcast(w)
    return fad.mean(jax.lax.scan(body, start, fad.broadcast(w), length=4)[0])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_client_state_that_starts_from_the_server(chunk):
    args = jnp.arange(3.0), fad.AtClients(jnp.arange(12.0).reshape(4, 3))
    for f in (personal, jax.grad(lambda w, d: personal(w, d).sum())):
        np.testing.assert_allclose(
            fad.jit(f, chunk=chunk)(*args), jax.jit(f)(*args), rtol=1e-5
        )


def test_measuring_spares_arguments_donated_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FAD_CACHE_DIR", str(tmp_path))

    @fad.program
    def f(w, d):
        def client(w, x):
            return jnp.tanh(jnp.outer(w, x)) @ x * w.sum()

        return w - 0.1 * fad.mean(fad.map(client, fad.broadcast(w), d))

    d = fad.AtClients(jnp.ones((64, 3)))
    expected = f(jnp.ones(3), d)
    streamed = fad.jit(f, donate_argnums=0)(w=jnp.ones(3), d=d)
    np.testing.assert_allclose(streamed, expected, rtol=1e-5)
