"""fad: a round is a program, its local training ``fad.local.train``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import fad
from benchmarks._workload import LR
from benchmarks.workers import _hypergradient, _models, _scale
from benchmarks.workers._serve import flat, layers, serve


def compiled(fn):
    """Compile a function of programs."""
    return fad.jit(fn) if hasattr(fad, "jit") else jax.jit(fn)


class CNN(nn.Module):
    """Two convolutions, a pool and two dense layers."""

    @nn.compact
    def __call__(self, x):
        """Return ``[batch, 62]``."""
        from fad.local.layers import Conv, max_pool

        x = x[..., None]
        x = nn.relu(Conv(32, (3, 3), padding="VALID", name="conv0")(x))
        x = nn.relu(Conv(64, (3, 3), padding="VALID", name="conv1")(x))
        x = max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        x = nn.relu(nn.Dense(128, name="dense0")(x))
        return nn.Dense(62, name="dense1")(x)


def losses(model):
    """Return ``loss(params, examples) -> [batch]``."""

    def loss(params, examples):
        if model == "mlp":
            return _models.losses(model, params, examples["x"], examples["y"])
        logits: Any = CNN().apply({"params": params}, examples["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples["y"])

    return loss


def round_of(model):
    """Return ``(params, lr, server_lr, cohort) -> params``, for any rates."""

    @fad.program
    def one_round(params, lr, server_lr, cohort):
        def client(batches):
            optimizer = optax.sgd(lr)
            return fad.local.train(
                params, batches, loss=losses(model), optimizer=optimizer
            )

        local = fad.map(client, cohort)
        delta = fad.weighted_mean(local.delta, local.num_examples)
        return jax.tree.map(lambda p, d: p + server_lr * d, params, delta)

    return one_round


def cohort_of(x, y, real, clients):
    """Return client batches as a cohort."""
    examples = {"x": x, "y": y}
    return fad.AtClients(fad.local.Batches(examples, real, clients))


class Rounds:
    """FedAvg, one compiled round per turn."""

    def __init__(self, workload):
        self.workload, self.batches = workload, workload.padded()
        self.params = jax.tree.map(jnp.asarray, layers(workload))
        one_round = round_of(workload.model)
        self.step = compiled(lambda p, cohort: one_round(p, LR, 1.0, cohort))

    def turn(self, i):
        """Run one round."""
        clients = self.workload.schedule[i]
        x, y, real = (array[clients] for array in self.batches)
        cohort = cohort_of(x, y, real, clients)
        self.params = jax.block_until_ready(self.step(self.params, cohort))

    def result(self):
        """Return the params."""
        return flat(self.params)

    def facts(self):
        """Return how it was compiled."""
        return {"jit": "fad.jit" if hasattr(fad, "jit") else "jax.jit"}


def hypergradient(workload, rounds, x64=False, mode="reverse"):
    """Differentiate through the rounds, written out one after the other."""
    n, one_round = workload.schedule.shape[1], round_of(workload.model)

    def one(params, lr, server_lr, cohort, counts):
        del counts
        return one_round(params, lr, server_lr, cohort)

    def wrap(cohort):
        (x, y, real), counts = cohort
        return cohort_of(x, y, real, np.arange(n, dtype=np.int32)), counts

    grad = functools.partial(fad.grad, mode=mode)
    return _hypergradient.Hypergradient(
        workload, one, compiled, rounds, x64, wrap, grad
    )


def scale(mesh_devices=None, plain_jit=False, **options):
    """One point of the scaling study."""

    def mean_of(client, params, lr, data):
        return fad.mean(fad.map(lambda batches: client(params, lr, batches), data))

    wrap = fad.AtClients
    if plain_jit:
        return _scale.Point(fad.program(mean_of), jax.jit, wrap, **options)
    if mesh_devices is None:
        return _scale.Point(fad.program(mean_of), compiled, wrap, **options)
    mesh = jax.make_mesh((mesh_devices,), ("clients",))
    jit = functools.partial(fad.jit, mesh=mesh)
    return _scale.Point(fad.program(mean_of), jit, wrap, **options)


if __name__ == "__main__":
    serve({"fedavg": Rounds, "hypergradient": hypergradient, "scale": scale})
