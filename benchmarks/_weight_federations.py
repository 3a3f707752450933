"""Two federations of Fashion-MNIST in which clients should not count alike.

Images are shrunk to 14 x 14. The server holds clean examples for the methods that
learn on them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fad import data, models

CLIENTS, EXAMPLES, SERVER = 100, 6000, 500
COHORT, BATCH = 10, 20


class Setting(NamedTuple):
    """A model and its training."""

    hidden: tuple[int, ...]
    epochs: int
    rounds: int = 150
    client_lr: float = 0.1


class Federation(NamedTuple):
    """Clients, the server's examples, and the share of wrong labels of each client."""

    train: data.Federated
    server: dict[str, np.ndarray]
    noise: np.ndarray


SETTINGS = {"noisy": Setting((32,), 5), "unequal": Setting((), 1)}


def make(name: str, seed: int) -> Federation:
    """Make the federation of a seed."""
    rng, rows = np.random.default_rng(seed), images("train")
    order = rng.permutation(len(rows["y"]))
    server = {k: v[order[:SERVER]] for k, v in rows.items()}
    pool, noise = order[SERVER:], np.zeros(CLIENTS)
    if name == "unequal":
        parts = _unequal(rows["y"], pool, rng)
        return Federation(data.Federated.from_indices(rows, parts), server, noise)
    pool = pool[:EXAMPLES]
    dealt = data.partition_dirichlet(rows["y"][pool], CLIENTS, alpha=1.0, seed=seed)
    train = data.Federated.from_indices(rows, [pool[part] for part in dealt])
    noise[rng.permutation(CLIENTS)[:30]] = np.linspace(0.5, 1.0, 30)
    train = data.flip_labels(train, fraction=noise, seed=seed, classes=10)
    return Federation(train, server, noise)


def _unequal(
    y: np.ndarray, pool: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Deal sizes in proportion to 1 / rank, and two classes to each client."""
    size = 1 / (1 + rng.permutation(CLIENTS))
    size = np.round(EXAMPLES * size / size.sum()).astype(int)
    left, parts = [list(pool[y[pool] == c]) for c in range(10)], []
    for n in size:
        two = rng.choice(10, 2, replace=False)
        parts.append(np.array([left[two[i % 2]].pop() for i in range(n)]))
    return parts


@functools.cache
def images(split: str) -> dict[str, np.ndarray]:
    """Return the images of a split as ``[N, 196]`` bytes, and their labels."""
    rows = data.load("fashion_mnist", split=split)
    blocks = rows["image"].reshape(-1, 14, 2, 14, 2).mean((2, 4)).round()
    x = blocks.astype(np.uint8).reshape(len(blocks), -1)
    return {"x": x, "y": rows["label"].astype(np.int32)}


def cohorts(train: data.Federated, setting: Setting, seed: int) -> Any:
    """Return the cohorts of all rounds, stacked."""
    key = jax.random.key(seed)
    options: dict[str, Any] = {"epochs": setting.epochs, "bucket_growth": None}
    size = min(COHORT, train.num_clients)
    made = [
        train.cohort(jax.random.fold_in(key, t), size, batch_size=BATCH, **options)
        for t in range(setting.rounds)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *made)


def everyone(train: data.Federated, setting: Setting) -> Any:
    """Return all clients as one cohort."""
    size, key = train.num_clients, jax.random.key(0)
    return train.cohort(key, size, batch_size=BATCH, epochs=setting.epochs)


def model(setting: Setting) -> tuple[Any, Any, Any]:
    """Return ``init(key)``, ``loss(params, examples)`` and ``accuracy`` of all."""
    name, options = (
        ("mlp", {"hidden": setting.hidden})
        if setting.hidden
        else (
            "logistic",
            {},
        )
    )
    net = models.make(name, classes=10, **options)

    def logits(params: Any, x: Any) -> Any:
        return net.apply({"params": params}, jnp.asarray(x).astype(jnp.float32) / 255)

    def init(key):
        return net.init(key, jnp.zeros((1, 196), jnp.float32))["params"]

    def loss(params, rows):
        scores = logits(params, rows["x"])
        return optax.softmax_cross_entropy_with_integer_labels(scores, rows["y"])

    def accuracy(params, rows):
        return (logits(params, rows["x"]).argmax(-1) == rows["y"]).mean()

    return init, loss, accuracy
