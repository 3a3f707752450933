"""Memory of compiled programs: flat in the number of clients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

import fad
from tests.compile.programs import temp_bytes
from tests.subjects import assert_same

FEW, MANY = 64, 16384
WIDTH = 32  # a model is more than the few bytes that are stored per client


@pytest.fixture
def quick() -> None:
    """Let XLA optimise: memory is the compiled program's."""


def _args(n: int) -> tuple:
    shape = jax.ShapeDtypeStruct((n, 2), jnp.float32)
    return (
        jax.ShapeDtypeStruct((2, WIDTH), jnp.float32),
        fad.AtClients(shape),
        fad.AtClients(jax.ShapeDtypeStruct((n,), jnp.float32)),
    )


def _local(p, d):
    step = lambda q, _: (q - 0.1 * jax.grad(_loss)(q, d), None)  # noqa: E731
    return jax.lax.scan(step, p, None, length=2)[0]


def _loss(p, d):
    return jnp.mean(jnp.sin(d @ p) ** 2)


def _round(remat: bool | None = None, work: Callable = _local) -> Callable:
    @fad.program
    def run(w, data, weights):
        new = fad.map(work, fad.broadcast(w), data, remat=remat)
        return fad.weighted_mean(new, weights)

    return run


def _train(run: Callable) -> Callable:
    def train(w, data, weights):
        body = lambda w, _: (run(w, data, weights), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(body, w, None, length=8)[0] ** 2)

    return train


def _scalar(run: Callable) -> Callable:
    return lambda *args: jnp.sum(run(*args) ** 2)


PROGRAMS = {
    "round": _round(),
    "gradient_of_a_round": jax.grad(_scalar(_round())),
    "fad_gradient": fad.value_and_grad(_scalar(_round()), mode="reverse"),
    "forward": fad.grad(lambda s, *args: _scalar(_round())(s * args[0], *args[1:])),
    "rounds": _train(_round()),
    "gradient_through_rounds": jax.grad(_train(_round())),
    "one_gradient_step": jax.grad(_scalar(_round(work=jax.grad(_loss)))),
}


def _bytes(name: str, n: int, chunk: int | None) -> int:
    args = _args(n)
    if name == "forward":
        args = (jax.ShapeDtypeStruct((), jnp.float32), *args)
    return temp_bytes(PROGRAMS[name], *args, chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize("name", PROGRAMS)
def test_memory_does_not_grow_with_clients(name, chunk):
    assert _bytes(name, MANY, chunk) <= 1.1 * _bytes(name, FEW, chunk)


def test_memory_grows_where_the_user_keeps_residuals():
    few, many = (
        temp_bytes(jax.grad(_scalar(_round(remat=False))), *_args(n), chunk=1)
        for n in (FEW, 16 * FEW)
    )
    assert many > 4 * few
    args = jnp.ones((2, WIDTH)), fad.AtClients(jnp.ones((5, 2)))
    args = (*args, fad.AtClients(jnp.arange(5.0)))
    kept = fad.jit(jax.grad(_scalar(_round(remat=False))), chunk=1)(*args)
    again = fad.jit(jax.grad(_scalar(_round(remat=True))), chunk=1)(*args)
    assert_same(kept, again, tol=1e-5)


@pytest.mark.parametrize("remat", [None, True, False])
def test_checkpoints_of_rounds_do_not_hold_models_per_client(remat):
    """One model per round is saved, and with ``remat=False`` what clients kept."""
    gradient = jax.grad(_train(_round(remat=remat)))
    used = temp_bytes(gradient, *_args(1024), chunk=1)
    models = 8 * 1024 * 2 * WIDTH * 4  # rounds, clients, a model
    assert used > models if remat is False else used < models / 20


def test_a_chunk_of_all_is_as_large_as_the_clients_are_many():
    run = _round()
    assert temp_bytes(run, *_args(4096), chunk=None) > 1024 * WIDTH * 4
    assert temp_bytes(run, *_args(4096), chunk=1) < 64 * WIDTH * 4 * 4


def test_large_client_values_read_in_two_rounds_are_not_stored():
    @fad.program
    def run(data):
        big = fad.map(lambda d: jnp.sin(jnp.outer(d, jnp.arange(256.0))), data)
        mean = fad.mean(big)
        return fad.mean(fad.map(lambda b: jnp.sum((b - mean) ** 2), big))

    used = temp_bytes(run, _args(4096)[1], chunk=1)
    assert used < 4096 * 256
