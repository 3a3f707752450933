"""The models of the tests, at a full width and at a narrow one."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fad.models import make
from fad.models._resnet import ResNet18


class Pair(NamedTuple):
    """A model, a narrower one of its class, and an input's shape and dtype."""

    full: nn.Module
    narrow: nn.Module
    x: jax.ShapeDtypeStruct


def _images(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _pair(make, x, full: dict[str, Any], narrow: dict[str, Any]) -> Pair:
    return Pair(make(**full), make(**narrow), x)


_TEXT = jax.ShapeDtypeStruct((2, 3), jnp.int32)
_ten = lambda name: functools.partial(make, name, classes=10)  # noqa: E731
_resnet = functools.partial(ResNet18, 10, blocks=(1, 2))
PAIRS = {
    "mlp": _pair(_ten("mlp"), _images(2, 3, 3), {"hidden": (6, 4)}, {"hidden": (3, 2)}),
    "fednest_mlp": _pair(
        _ten("fednest_mlp"), _images(2, 3, 3), {"width": 6}, {"width": 2}
    ),
    "fedavg_cnn": _pair(
        _ten("fedavg_cnn"), _images(2, 8, 8, 1), {"width": 3}, {"width": 2}
    ),
    "fedsep_cnn": _pair(
        _ten("fedsep_cnn"), _images(2, 28, 28, 1), {"width": 5}, {"width": 3}
    ),
    "char_lstm": _pair(_ten("char_lstm"), _TEXT, {"width": 5}, {"width": 2}),
    "char_transformer": _pair(
        _ten("char_transformer"), _TEXT, {"width": 16}, {"width": 8}
    ),
    "resnet18 group": _pair(_resnet, _images(2, 4, 4, 3), {"width": 8}, {"width": 4}),
    "resnet18 static_batch": _pair(
        functools.partial(_resnet, norm="static_batch"),
        _images(2, 4, 4, 3),
        {"width": 4},
        {"width": 3},
    ),
}


@functools.cache
def shapes(model: nn.Module, x: jax.ShapeDtypeStruct) -> Any:
    """Return the shapes of a model's parameters."""
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]
