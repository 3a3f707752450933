"""A small federation of ragged, heterogeneous clients with a smooth task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad

SIZES = (0, 1, 7, 12)
DIM = 3


class Federation(NamedTuple):
    """A cohort and what it was made of."""

    cohort: fad.AtClients
    clients: list[tuple[np.ndarray, np.ndarray]]
    steps: int
    batch: int


def loss(params, examples):
    """Squared error of a tanh unit, one per row."""
    return (jnp.tanh(examples["x"] @ params["w"] + params["b"]) - examples["y"]) ** 2


def init_params(key):
    """Start near zero, in the default precision."""
    return {"w": 0.3 * jax.random.normal(key, (DIM,)), "b": jnp.zeros(())}


@pytest.fixture
def federation() -> Federation:
    """Clients of 0, 1, 7 and 12 rows in batches of 5, in stored order."""
    rng, batch = np.random.default_rng(0), 5
    steps = -(-max(SIZES) // batch)
    x = np.zeros((len(SIZES), steps * batch, DIM))
    y = np.zeros((len(SIZES), steps * batch))
    mask = np.zeros((len(SIZES), steps * batch), bool)
    clients = []
    for i, size in enumerate(SIZES):
        own_x = rng.normal(size=(size, DIM)) + i
        own_y = np.tanh(own_x @ rng.normal(size=DIM)) + 0.1 * i
        x[i, :size], y[i, :size], mask[i, :size] = own_x, own_y, True
        clients.append((own_x, own_y))
    shape = (len(SIZES), steps, batch)
    batches = fad.local.Batches(
        examples={
            "x": jnp.asarray(x.reshape(*shape, DIM)),
            "y": jnp.asarray(y.reshape(shape)),
        },
        mask=jnp.asarray(mask.reshape(shape)),
        client=jnp.arange(len(SIZES)),
    )
    return Federation(fad.AtClients(batches), clients, steps, batch)


@pytest.fixture(autouse=True)
def optax_promotion():
    """Optax's Adam raises a Python float to an int32 count: no strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield
