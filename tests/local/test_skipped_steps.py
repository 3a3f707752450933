"""What a client that trains alone, not under vmap, computes and keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fad.local import Batches, train

BATCH, STEPS = 3, 3


@pytest.mark.parametrize("size", [0, 1, 7])
def test_one_client_alone_computes_no_step_of_padding(size):
    computed = []

    def loss(params, examples):
        jax.debug.callback(computed.append, params["b"])
        return (params["b"] - examples["y"]) ** 2

    mask = (np.arange(STEPS * BATCH) < size).reshape(STEPS, BATCH)
    batches = Batches({"y": jnp.ones((STEPS, BATCH))}, jnp.asarray(mask), jnp.int32(2))
    params = {"b": jnp.array(0.5)}
    run = jax.jit(lambda b: train(params, b, loss=loss, optimizer=optax.sgd(0.1)))
    steps = run(batches).num_steps
    jax.effects_barrier()
    assert len(computed) == steps == -(-size // BATCH)


def test_a_client_alone_keeps_no_more_for_the_derivative_than_its_steps_need():
    params = {"w": jnp.ones((50, 40)), "v": jnp.ones((40, 1))}
    examples = {"x": jnp.ones((STEPS, BATCH, 50)), "y": jnp.ones((STEPS, BATCH))}
    batches = Batches(examples, jnp.ones((STEPS, BATCH), bool), jnp.int32(0))

    def loss(p, e):
        return (jnp.tanh(e["x"] @ p["w"]) @ p["v"])[:, 0] - e["y"]

    def delta(p):
        return train(p, batches, loss=loss, optimizer=optax.sgd(0.1)).delta

    _, linear = jax.linearize(delta, params)
    shapes = [jnp.shape(v) for v in jax.tree.leaves(linear)]
    assert (STEPS, 50, 40) not in shapes
