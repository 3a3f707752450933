"""Distillation on public examples: unlabelled ones of the server's, that clients know.

They are ``task.validation`` without its labels, V of them in a shuffled order. Round t
has the next P after those of round t - 1, modulo V, and its steps take B of these, one
batch after another. All have had them from the start, and t names a round's: neither
examples nor indices are sent, and ``fad.plan`` counts only what models say of them. The
losses of a model give its logits z up to a constant,

    log p_c = -l(x, y = c) = z_c - log sum_k exp z_k,

which a softmax does not see, be it of a mean over models, nor a variance over classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fad

Loss = Callable[..., jax.Array]


class Distillation(NamedTuple):
    """How a model is distilled in one round.

    Attributes:
        optimizer: The students' optimizer, which starts afresh every round.
        examples: How many public examples a round has, P; at most all.
        batch: Of how many of them a step is, B.
        steps: The number of steps.
    """

    optimizer: optax.GradientTransformation
    examples: int = 512
    batch: int = 64
    steps: int = 100


@dataclass(frozen=True)
class Public:
    """The public examples ``[V, *]``, the number of classes, and how to distil."""

    examples: dict[str, np.ndarray]
    classes: int
    options: Distillation

    @property
    def size(self) -> int:
        """The number of examples of a round, P."""
        return min(self.options.examples, *map(len, self.examples.values()))

    def rows(self, rounds: jax.Array) -> dict[str, jax.Array]:
        """Return the examples of round ``rounds``: ``[P, *]``."""
        count = rounds * self.size + jnp.arange(self.size)
        return {k: jnp.asarray(v)[count % len(v)] for k, v in self.examples.items()}

    def log_probabilities(self, loss: Loss, params: Any, rows: Any) -> jax.Array:
        """Return a model's log-probabilities, by its losses: ``[b, *] -> [b, C]``."""
        count = len(jax.tree.leaves(rows)[0])

        def of_label(label: jax.Array) -> jax.Array:
            return -loss(params, {**rows, "y": jnp.full(count, label)})

        return jax.vmap(of_label, out_axes=1)(jnp.arange(self.classes))

    def distil(
        self, params: Any, objective: Loss, there: jax.Array
    ) -> fad.local.LocalResult:
        """Take the steps, or none unless ``there``.

        ``objective(params, index) -> [b]`` has the losses of the round's examples of
        these numbers, ``[b]``.
        """
        o, size = self.options, self.size
        batch = min(o.batch, size)
        index = jnp.arange(o.steps * batch).reshape(o.steps, batch) % size
        mask = jnp.broadcast_to(there, index.shape)
        batches = fad.local.Batches(index, mask, jnp.int32(0))
        return fad.local.train(params, batches, loss=objective, optimizer=o.optimizer)


def public_of(task: fad.data.Task, options: Distillation) -> Public:
    """Return the public examples of a task.

    Raises:
        ConfigError: It has none, or its labels are no classes.
    """
    if task.validation is None:
        raise fad.ConfigError(
            "data.validation_fraction: expected some, such as 0.2, for public examples "
            f"to distil on, but the task {task.name!r} has none at the server."
        )
    known = [part["y"] for part in (task.train.examples, task.test)]
    if any(y.ndim != 1 or y.dtype.kind not in "iu" for y in known):
        y = known[0]
        raise fad.ConfigError(
            "distillation: expected a class for each example; got y of "
            f"{y.dtype}{list(y.shape)}. Choose a set of classes, or another algorithm."
        )
    examples = {k: v for k, v in task.validation.items() if k != "y"}
    order = np.random.default_rng(0).permutation(len(task.validation["y"]))
    classes = 1 + max(int(y.max()) for y in known)
    return Public({k: v[order] for k, v in examples.items()}, classes, options)


def at_clients(rows: Any, cohort: fad.AtClients) -> fad.AtClients:
    """Return what all clients of a cohort know: ``[*s] -> [n, *s]``, nothing sent."""
    n = cohort.num_clients
    return fad.AtClients(
        jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), rows)
    )


def divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Return KL(teacher | student) of log-probabilities: ``[b, C], [b, C] -> [b]``."""
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1)
