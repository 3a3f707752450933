"""Every model in a tiny version, with examples that it learns from."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fad import models

CLASSES = 3


class Subject(NamedTuple):
    model: nn.Module
    shape: tuple[int, ...]  # of one batch

    def examples(self, *, lead: tuple[int, ...] = (), seed: int = 0) -> dict[str, Any]:
        """Return random examples: real numbers with classes, or text."""
        random = np.random.default_rng(seed)
        shape = (*lead, *self.shape)
        if isinstance(self.model, models.CharLstm | models.CharTransformer):
            x = random.integers(0, CLASSES, shape, np.int32)
            return {"x": x, "y": np.roll(x, -1, axis=-1)}
        labels = random.integers(0, CLASSES, shape[: len(lead) + 1], np.int32)
        return {"x": random.random(shape, np.float32), "y": labels}

    def params(self, *, lead: tuple[int, ...] = (), seed: int = 0) -> Any:
        """Return random parameters, without compiling the model's own ones."""
        random = np.random.default_rng(seed)
        x = self.examples()["x"]
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), x)["params"]

        def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            values = random.normal(size=(*lead, *leaf.shape))
            if len(leaf.shape) > 1:
                values = values / np.prod(leaf.shape[:-1]) ** 0.5
            else:  # a bias, or the scale of a norm
                values = 0.5 + 0.1 * values
            return jnp.asarray(values, leaf.dtype)

        return jax.tree.map(draw, shapes)

    def loss(self, params: Any, examples: dict[str, Any]) -> jax.Array:
        """Return the loss of each example."""
        logits: Any = self.model.apply({"params": params}, examples["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples["y"])
        return losses.mean(tuple(range(1, losses.ndim)))


def _resnet(norm: Any) -> nn.Module:
    """Return one with both kinds of blocks, which compiles in seconds."""
    return models.ResNet18(CLASSES, norm=norm, width=2, blocks=(1, 1))


SUBJECTS = {
    "mlp": Subject(models.Mlp((5,), CLASSES), (4, 3, 2)),
    "fednest_mlp": Subject(models.FedNestMlp(CLASSES, width=4), (4, 3, 2)),
    "fedavg_cnn": Subject(models.FedAvgCnn(CLASSES, width=2), (4, 4, 4, 1)),
    "fedsep_cnn": Subject(models.FedSepCnn(CLASSES, width=3), (4, 23, 23, 1)),
    "resnet": Subject(_resnet("group"), (4, 4, 4, 1)),
    "resnet_static": Subject(_resnet("static_batch"), (4, 4, 4, 1)),
    "char_lstm": Subject(models.CharLstm(CLASSES, embedding=2, width=3), (4, 5)),
    "char_transformer": Subject(
        models.CharTransformer(CLASSES, width=4, heads=2, layers=1, length=6),
        (4, 5),
    ),
}
