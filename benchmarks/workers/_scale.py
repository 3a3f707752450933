"""One point of the scaling study: FedAvg with full participation, scanned rounds.

Each client takes 5 SGD steps on batches of 10 (784-64-10, 50,890 parameters); the outer
loss is the cross-entropy on 500 points.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

STEPS, BATCH, PIXELS, HIDDEN, CLASSES, VALIDATION = 5, 10, 784, 64, 10, 500


def _losses(params, x, y):
    hidden = jax.nn.relu(x @ params["a"] + params["b"].reshape(1, -1))
    logp = jax.nn.log_softmax(hidden @ params["c"] + params["d"].reshape(1, -1))
    return -jnp.take_along_axis(logp, y[:, None], axis=1)[:, 0]


def _client(params, lr, batches):
    def step(p, batch):
        grads = jax.grad(lambda p: _losses(p, *batch).mean())(p)
        return jax.tree.map(lambda a, g: a - lr * g, p, grads), None

    return lax.scan(step, params, batches)[0]


def _arrays(clients):
    rng = np.random.default_rng(0)
    shape = (clients, STEPS, BATCH)
    x = rng.random((*shape, PIXELS), np.float32)
    y = rng.integers(0, CLASSES, shape, np.int32)
    a = rng.standard_normal((PIXELS, HIDDEN), np.float32) * np.float32(0.05)
    c = rng.standard_normal((HIDDEN, CLASSES), np.float32) * np.float32(0.18)
    zeros = np.zeros(HIDDEN, np.float32), np.zeros(CLASSES, np.float32)
    params = {"a": a, "b": zeros[0], "c": c, "d": zeros[1]}
    held_out = rng.random((VALIDATION, PIXELS), np.float32)
    labels = rng.integers(0, CLASSES, VALIDATION, np.int32)
    return (x, y), params, (held_out, labels)


class Point:
    """Some clients and rounds, run forward or differentiated.

    Args:
        mean_of: ``(client, params, lr, data) -> params``, the clients' mean.
        jit: Compiles the whole.
        wrap: Makes client data of the arrays.
        clients: How many take part in every round.
        rounds: How many, in one ``lax.scan``.
        derivative: ``"none"``; ``"reverse"``, by both rates; or ``"forward"``, by the
            server's.
        checkpoint: Recompute each round in the backward pass.
    """

    def __init__(
        self, mean_of, jit, wrap, *, clients, rounds, derivative, checkpoint=False
    ):
        data, params, held_out = _arrays(clients)

        def one_round(w, rates, data):
            mean = mean_of(_client, w, rates[0], data)
            return jax.tree.map(lambda p, m: p + rates[1] * (m - p), w, mean)

        one_round = jax.checkpoint(one_round) if checkpoint else one_round

        def loss(rates, data):
            def body(w, _):
                return one_round(w, rates, data), None

            w, _ = lax.scan(body, params, None, length=rounds)
            return _losses(w, *held_out).mean()

        def tangent(rates, data):
            along = (jnp.zeros_like(rates[0]), jnp.ones_like(rates[1]))
            return jax.jvp(lambda r: loss(r, data), (rates,), (along,))

        functions = {
            "none": loss,
            "reverse": jax.value_and_grad(loss),
            "forward": tangent,
        }
        self.arguments = (jnp.float32(0.1), jnp.float32(1.0)), wrap(data)
        start = time.perf_counter()
        lowered = jit(functions[derivative]).lower(*self.arguments)
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.value = None

    def turn(self, i):
        """Run it once more."""
        del i
        self.value = jax.block_until_ready(self.compiled(*self.arguments))

    def result(self):
        """Return the loss and its derivatives."""
        leaves = jax.tree.leaves(self.value)
        return {str(k): np.asarray(leaf) for k, leaf in enumerate(leaves)}

    def facts(self):
        """Return XLA's memory, per device, and the seconds of compilation."""
        analysis = self.compiled.memory_analysis()
        return {
            "temp_bytes": analysis.temp_size_in_bytes,
            "argument_bytes": analysis.argument_size_in_bytes,
            "compile_seconds": self.compile_seconds,
        }
