"""A small model, rounds of it, and what the tests compare."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fad
from fad import _compat
from tests.subjects import assert_same

CLIENTS, ROWS, FEATURES = 7, 4, 3
CHUNKS = (1, 3)  # 3 does not divide 7


def make_params() -> dict[str, jax.Array]:
    """Return a model."""
    return {"w": jnp.asarray(np.random.default_rng(0).normal(size=(FEATURES, 2)))}


def make_data(n: int = CLIENTS, lead: tuple[int, ...] = ()) -> fad.AtClients:
    """Return data ``[*lead, n, rows, features]``."""
    random = np.random.default_rng(n)
    data = {
        "x": jnp.asarray(random.normal(size=(*lead, n, ROWS, FEATURES))),
        "y": jnp.asarray(random.normal(size=(*lead, n, ROWS, 2))),
    }
    return fad.AtClients(data)


def make_weights(n: int = CLIENTS) -> fad.AtClients:
    """Return one weight per client."""
    return fad.AtClients(jnp.asarray(1.0 + np.arange(n)))


def loss(params: Any, data: Any) -> jax.Array:
    """Return one client's loss."""
    return jnp.mean((jnp.tanh(data["x"] @ params["w"]) - data["y"]) ** 2)


def local(params: Any, data: Any, lr: Any = 0.1) -> Any:
    """Return the params after a client's step, of a length that depends on its data."""
    grads = jax.grad(loss)(params, data)
    rate = lr * jnp.cos(data["y"].sum())
    return jax.tree.map(lambda a, g: a - rate * jnp.sin(g), params, grads)


def train_round(params: Any, data: Any, weights: Any, lr: Any = 0.1) -> Any:
    """Run a round: a local step, then the weighted mean of the models."""
    new = fad.map(lambda p, d: local(p, d, lr), fad.broadcast(params), data)
    return fad.weighted_mean(new, weights)


@fad.program
def average(params: Any, data: Any, weights: Any, lr: Any = 0.1) -> Any:
    """Run one round."""
    return train_round(params, data, weights, lr)


@fad.program
def mean_loss(params: Any, data: Any) -> jax.Array:
    """Return the clients' mean loss."""
    return fad.mean(fad.map(loss, fad.broadcast(params), data))


@fad.program
def train(params: Any, data: Any, weights: Any, lr: Any = 0.1) -> jax.Array:
    """Return the mean loss after two rounds in a scan."""

    def body(p, _):
        return train_round(p, data, weights, lr), None

    params, _ = jax.lax.scan(body, params, None, length=2)
    return mean_loss(params, data)


def check_same(
    fn: Callable,
    *args: Any,
    chunks: Sequence[int | None] = CHUNKS,
    tol: float = 1e-12,
    **options: Any,
) -> None:
    """Assert that ``fad.jit`` computes what ``jax.jit`` does."""
    check_same_for_each(fn, [args], chunks=chunks, tol=tol, **options)


def check_same_for_each(
    fn: Callable,
    arguments: Sequence[tuple],
    *,
    chunks: Sequence[int | None] = CHUNKS,
    tol: float = 1e-12,
    **options: Any,
) -> None:
    """Do so for arguments of the same types, compiled once for all of them."""
    plain = jax.jit(fn)
    expected = [plain(*args) for args in arguments]
    at_clients = lambda v: isinstance(v, fad.AtClients)  # noqa: E731
    for chunk in chunks:
        streamed = fad.jit(fn, chunk=chunk, **options)
        for args, want in zip(arguments, expected, strict=True):
            actual = streamed(*args)
            assert jax.tree.structure(actual, at_clients) == jax.tree.structure(
                want, at_clients
            )
            assert_same(actual, want, tol=tol)


def temp_bytes(fn: Callable, *args: Any, chunk: int | None = 1) -> int:
    """Return the bytes of temporary memory of the compiled program."""
    analysis: Any = fad.jit(fn, chunk=chunk).lower(*args).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def shapes_made(fn: Callable, *args: Any, chunk: int | None) -> set[tuple[int, ...]]:
    """Return the shapes of all values in the streamed program."""
    traced = fad.jit(fn, chunk=chunk).trace(*args)
    found: set[tuple[int, ...]] = set()

    def walk(jaxpr: Any) -> None:
        for eqn in _compat.open_jaxpr(jaxpr)[0].eqns:
            found.update(getattr(v.aval, "shape", ()) for v in eqn.outvars)
            for inner in _compat.jaxprs_in_params(eqn.params):
                walk(inner)

    walk(traced.jaxpr)
    return found
