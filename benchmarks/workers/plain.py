"""The floor: the same SGD steps in plain JAX, written by hand, and nothing else.

One jitted loop over clients, and in it a loop over a client's real batches alone. The
convolution is a product of patches with the kernel, since XLA's gradient of a
convolution is slow inside a loop on CPUs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._workload import BATCH, LR, Workload
from benchmarks.workers._serve import flat, layers, serve


def logits(model, params, x):
    """Return ``[batch, 62]`` for images ``[batch, 28, 28]``."""
    if model == "mlp":
        x = x.reshape(len(x), -1)
        x = jax.nn.relu(_dense(params["dense0"], x))
        x = jax.nn.relu(_dense(params["dense1"], x))
        return _dense(params["dense2"], x)
    x = jax.nn.relu(_conv(params["conv0"], x[..., None]))
    x = jax.nn.relu(_conv(params["conv1"], x))
    top = jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2])
    x = jnp.maximum(top, jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2]))
    x = jax.nn.relu(_dense(params["dense0"], x.reshape(len(x), -1)))
    return _dense(params["dense1"], x)


def _dense(p, x):
    return x @ p["kernel"] + p["bias"].reshape(1, -1)


def _conv(p, x):
    height, width = x.shape[1] - 2, x.shape[2] - 2
    shifts = [(i, j) for i in range(3) for j in range(3)]
    patches = [x[:, i : i + height, j : j + width] for i, j in shifts]
    rows = jnp.concatenate(patches, axis=-1).reshape(-1, 9 * x.shape[3])
    kernel = p["kernel"].reshape(rows.shape[1], -1)
    y = rows @ kernel + p["bias"].reshape(1, -1)
    return y.reshape(len(x), height, width, -1)


def loss(model, params, x, y, real):
    """Return the mean cross-entropy of the real rows."""
    logp = jax.nn.log_softmax(logits(model, params, x))
    losses = -jnp.take_along_axis(logp, y[:, None], axis=1)[:, 0]
    return jnp.where(real, losses, 0.0).sum() / real.sum(dtype=losses.dtype)


def one_round(model, params, x, y, real, steps, shares):
    """Return the new params: the mean of the clients', weighted by ``shares``.

    ``x: [n, 5, 10, 28, 28], y, real: [n, 5, 10], steps, shares: [n]``.
    """

    def client(total, inputs):
        x, y, real, steps, share = inputs

        def step(k, p):
            grads = jax.grad(loss, argnums=1)(model, p, x[k], y[k], real[k])
            return jax.tree.map(lambda a, g: a - LR * g, p, grads)

        trained = lax.fori_loop(0, steps, step, params)
        return jax.tree.map(lambda a, p: a + share * p, total, trained), None

    zero = jax.tree.map(jnp.zeros_like, params)
    return lax.scan(client, zero, (x, y, real, steps, shares))[0]


class Rounds:
    """FedAvg, one jitted loop per turn."""

    def __init__(self, workload: Workload):
        self.workload, self.batches = workload, workload.padded()
        self.params = jax.tree.map(jnp.asarray, layers(workload))
        self.step = jax.jit(one_round, static_argnums=0)

    def turn(self, i):
        """Run one round."""
        clients = self.workload.schedule[i]
        x, y, real = (array[clients] for array in self.batches)
        sizes = self.workload.sizes[clients]
        steps = (-(-sizes // BATCH)).astype(np.int32)
        shares = (sizes / sizes.sum()).astype(np.float32)
        params = self.step(self.workload.model, self.params, x, y, real, steps, shares)
        self.params = jax.block_until_ready(params)

    def result(self):
        """Return the params."""
        return flat(self.params)

    def facts(self):
        """Nothing else."""
        return {}


class MatrixProduct:
    """The rate of a large matrix product: what this machine's cores can do."""

    def __init__(self, workload, size=2048):
        del workload
        self.size = size
        a = jnp.asarray(np.random.default_rng(0).random((size, size), np.float32))
        self.dot, self.a = jax.jit(jnp.dot), a

    def turn(self, i):
        """Multiply once."""
        del i
        jax.block_until_ready(self.dot(self.a, self.a))

    def result(self):
        """Nothing."""
        return {}

    def facts(self):
        """Return the operations of a turn."""
        return {"flops": 2.0 * self.size**3}


if __name__ == "__main__":
    serve({"fedavg": Rounds, "matrix_product": MatrixProduct})
