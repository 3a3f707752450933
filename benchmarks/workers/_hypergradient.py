"""The gradient of a validation loss by both learning rates, through some rounds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workers._models import losses
from benchmarks.workers._serve import layers

VALIDATION = 500


class Hypergradient:
    """One gradient per turn, always the same.

    Args:
        workload: The clients; the first rows of their examples are the validation set.
        one_round: ``(params, lr, server_lr, batches, counts) -> params``.
        jit: Compiles the gradient.
        rounds: How many rounds.
        x64: In double precision.
        wrap: Applied to a round's batches and counts.
        grad: Differentiates by the first argument.
    """

    def __init__(
        self, workload, one_round, jit, rounds, x64, wrap: Any = tuple, grad=jax.grad
    ):
        if x64:
            jax.config.update("jax_enable_x64", True)
        real = np.float64 if x64 else np.float32
        params = jax.tree.map(lambda p: jnp.asarray(p, real), layers(workload))
        x, y, mask = workload.padded()
        cohorts = []
        for clients in workload.schedule[:rounds]:
            batches = (x[clients].astype(real), y[clients], mask[clients])
            counts = workload.sizes[clients].astype(real)
            cohorts.append(wrap((jax.tree.map(jnp.asarray, batches), counts)))
        held_out = workload.x[:VALIDATION].astype(real), workload.y[:VALIDATION]

        def loss(rates, cohorts):
            lr, server_lr = rates
            now = params
            for batches, counts in cohorts:
                now = one_round(now, lr, server_lr, batches, counts)
            return losses(workload.model, now, *held_out).mean()

        self.rates = (jnp.asarray(0.1, real), jnp.asarray(1.0, real))
        self.cohorts = cohorts
        self.compiled = jit(grad(loss)).lower(self.rates, cohorts).compile()
        self.gradient = None

    def turn(self, i):
        """Compute the gradient once more."""
        del i
        gradient = self.compiled(self.rates, self.cohorts)
        self.gradient = jax.block_until_ready(gradient)

    def result(self):
        """Return the derivatives."""
        values = jax.tree.leaves(self.gradient)
        names = ("lr", "server_lr")
        return {n: np.asarray(v) for n, v in zip(names, values, strict=True)}

    def facts(self):
        """Return the bytes that XLA sets aside."""
        analysis = self.compiled.memory_analysis()
        return {"temp_bytes": analysis.temp_size_in_bytes}
