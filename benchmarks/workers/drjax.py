"""DrJAX as its documentation has it: one ``map_fn`` over the cohort, in one jit.

Clients are padded to five batches, and a batch of padding alone leaves the params as
they are. ``unroll`` writes the local steps out instead of scanning them.
"""

import drjax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workers import _hypergradient, _scale
from benchmarks.workers._models import losses
from benchmarks.workers._serve import flat, layers, serve


def client_update(model, lr, unroll):
    """Return ``(params, batches) -> params`` of one client."""

    def objective(params, x, y, real):
        total = jnp.sum(jnp.where(real, losses(model, params, x, y), 0.0))
        return total / jnp.maximum(real.sum(), 1).astype(total.dtype)

    def step(params, batch):
        grads = jax.grad(objective)(params, *batch)
        return jax.tree.map(lambda p, g: p - lr * g, params, grads), None

    def update(params, batches):
        # The mean over no rows is zero with a zero gradient, so padding is no step.
        return jax.lax.scan(step, params, batches, unroll=unroll)[0]

    return update


def round_of(workload, unroll, cohort):
    """Return ``(params, lr, server_lr, batches, counts) -> params``, for any rates."""

    @drjax.program(clients=cohort)
    def one_round(params, lr, server_lr, batches, counts):
        def client(params, lr, batches):
            return client_update(workload.model, lr, unroll)(params, batches)

        sent = drjax.broadcast((params, lr))
        trained = drjax.map_fn(client, (*sent, batches))
        mean = jax.tree.map(
            lambda leaf: drjax.reduce_weighted_mean(leaf, counts), trained
        )
        return jax.tree.map(lambda p, m: p + server_lr * (m - p), params, mean)

    return one_round


class Rounds:
    """FedAvg, one jitted round per turn."""

    def __init__(self, workload, unroll=1):
        self.workload, self.batches = workload, workload.padded()
        one_round = round_of(workload, unroll, workload.schedule.shape[1])
        self.step = jax.jit(lambda p, b, n: one_round(p, jnp.float32(0.1), 1.0, b, n))
        self.params = jax.tree.map(jnp.asarray, layers(workload))

    def turn(self, i):
        """Run one round."""
        clients = self.workload.schedule[i]
        batches = tuple(array[clients] for array in self.batches)
        counts = self.workload.sizes[clients].astype(np.float32)
        self.params = jax.block_until_ready(self.step(self.params, batches, counts))

    def result(self):
        """Return the params."""
        return flat(self.params)

    def facts(self):
        """Nothing else."""
        return {}


def hypergradient(workload, rounds, x64=False):
    """Differentiate through the rounds, written out one after the other."""
    one_round = round_of(workload, 1, workload.schedule.shape[1])
    return _hypergradient.Hypergradient(workload, one_round, jax.jit, rounds, x64)


def scale(clients, **options):
    """One point of the scaling study."""

    @drjax.program(clients=clients)
    def mean_of(client, params, lr, data):
        sent = drjax.broadcast((params, lr))
        return drjax.reduce_mean(drjax.map_fn(client, (*sent, data)))

    return _scale.Point(mean_of, jax.jit, tuple, clients=clients, **options)


if __name__ == "__main__":
    serve({"fedavg": Rounds, "hypergradient": hypergradient, "scale": scale})
