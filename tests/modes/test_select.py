"""Modes of programs that send slices: the numbers of plain JAX with masks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests import jaxprs

SIZE, CLIENTS = 5, 3
KEYS = np.array([[3, 0, 1], [1, 4, -1], [-1, -1, -1]])
MODES = ("forward", "reverse", "mixed", "mixed-products", "auto")


def _args() -> tuple:
    random = np.random.default_rng(0)
    data = jnp.asarray(random.normal(size=(CLIENTS, SIZE)))
    x = {"rows": jnp.asarray(random.normal(size=SIZE)), "whole": jnp.asarray(0.5)}
    parts = (jnp.asarray(KEYS), data, jnp.array([1.0, 2.0, 3.0]))
    return x, {"lr": jnp.asarray(0.3)}, *map(fad.AtClients, parts)


def _local(x: Any, lr: Any, data: Any, mask: Any = 1.0) -> Any:
    """Return a client's model; its work on what it does not have comes to nothing."""
    total = jnp.sum(mask * x["rows"] ** 2) + x["whole"]
    return {
        "rows": x["rows"] - lr * jnp.sin(x["rows"] * total * data[0]),
        "whole": x["whole"] - lr * jnp.tanh(total + data[1]),
    }


@fad.program
def one_round(x: Any, lr: Any, keys: Any, data: Any, weights: Any) -> Any:
    where = {"rows": keys, "whole": None}
    mine = fad.select(x, where, public=True)
    new = fad.map(lambda p, d: _local(p, lr, d), mine, data)
    return fad.coverage_mean(new, where, x, weights=weights, public=True).mean


@fad.program
def evaluate(x: Any, keys: Any, data: Any) -> Any:
    """Return a number of sums over clients, of slices and of whole values."""
    turned = fad.map(lambda k: k[::-1], keys)
    mine = fad.map(jnp.cos, fad.select(x["rows"], turned))
    there = fad.map(lambda v, k: jnp.where(k >= 0, v, 0.0), mine, turned)
    back = fad.deselect(there, turned, x["rows"])
    return jnp.sum(back**2) + fad.mean(
        fad.map(lambda v, d: v.sum() * d[0], there, data)
    )


def train(x: Any, h: Any, keys: Any, data: Any, weights: Any) -> Any:
    for _ in range(2):
        x = one_round(x, h["lr"], keys, data, weights)
    return evaluate(x, keys, data) + x["whole"]


def plain(x: Any, h: Any, keys: Any, data: Any, weights: Any) -> Any:
    """Return the same of whole arrays and masks."""
    keys, data, weights = (v.unsafe_gather() for v in (keys, data, weights))
    mask = (keys[:, :, None] == jnp.arange(SIZE)[None, None]).any(1).astype(data.dtype)
    for _ in range(2):
        new = jax.vmap(_local, (None, None, 0, 0))(x, h["lr"], data, mask)
        held = mask * weights[:, None]
        rows = jnp.sum(held * new["rows"], 0) / jnp.maximum(held.sum(0), 1e-9)
        whole = jnp.sum(weights * new["whole"]) / weights.sum()
        x = {"rows": jnp.where(held.sum(0) > 0, rows, x["rows"]), "whole": whole}
    there = mask * jnp.cos(x["rows"])[None]
    mean = jnp.mean(there.sum(1) * data[:, 0])
    return jnp.sum(there.sum(0) ** 2) + mean + x["whole"]


@functools.cache
def _expected() -> Any:
    return jax.jit(jax.value_and_grad(plain, (0, 1)))(*_args())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_gradient_of_masks(mode):
    got = jax.jit(fad.value_and_grad(train, (0, 1), mode=mode))(*_args())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), got, _expected())


@pytest.mark.usefixtures("x64")
def test_products_with_the_derivative():
    x, h, *rest = _args()
    run = lambda x, h: train(x, h, *rest)  # noqa: E731
    want, (by_x, by_h) = _expected()
    value, pull = fad.vjp(run, x, h, mode="mixed")
    _, along = fad.jvp(run, (x, h), (x, h), mode="reverse")
    np.testing.assert_allclose(value, want, 1e-12)
    assert jax.tree.structure(pull(jnp.ones(()))) == jax.tree.structure((by_x, by_h))
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), (by_x, by_h), (x, h))
    np.testing.assert_allclose(along, sum(jax.tree.leaves(products)), 1e-12)


def test_the_policy_saves_what_deselect_gave():
    args = _args()

    def deselects(policy: Any) -> int:
        one = jax.checkpoint(one_round, policy=policy)

        def run(x):
            x = one(x, args[1]["lr"], *args[2:])
            return jnp.sum(jnp.sin(one(x, args[1]["lr"], *args[2:])["rows"]))

        (count,) = jaxprs.count(["fad_deselect"], jax.grad(run), args[0])
        return count

    assert deselects(fad.save_aggregates) < deselects(None)
