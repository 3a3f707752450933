"""Models by name."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from fad._errors import ConfigError, nearest
from fad.models._cnn import FedAvgCnn, FedSepCnn
from fad.models._lstm import CharLstm
from fad.models._mlp import FedNestMlp, Mlp
from fad.models._resnet import Norm, ResNet18
from fad.models._transformer import CharTransformer


def _resnet18(
    classes: int,
    norm: Norm = "group",
    width: int = 64,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
) -> ResNet18:
    return ResNet18(classes, norm, width, blocks)


# One entry per name: its parameters after ``classes`` are the model's options.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda classes, hidden=(64, 64): Mlp(hidden, classes),
    "logistic": lambda classes: Mlp((), classes),
    "fednest_mlp": lambda classes, width=200: FedNestMlp(classes, width),
    "fedavg_cnn": lambda classes, width=32: FedAvgCnn(classes, width),
    "fedsep_cnn": lambda classes, width=32: FedSepCnn(classes, width),
    "resnet18": _resnet18,
    "char_lstm": lambda classes, width=256, layers=2: CharLstm(
        classes, width=width, layers=layers
    ),
    "char_transformer": lambda classes, width=128, layers=2, length=80: CharTransformer(
        classes, width=width, layers=layers, length=length
    ),
}


def make(name: str, *, classes: int, **options: Any) -> nn.Module:
    """Make the model called ``name``.

    Args:
        name: ``mlp``, ``logistic``, ``fednest_mlp``, ``fedavg_cnn``, ``fedsep_cnn``,
            ``resnet18``, ``char_lstm`` or ``char_transformer``.
        classes: Number of classes; for text the number of different characters.
        options: The model's own: ``hidden`` (widths) of ``mlp``; ``norm`` and
            ``blocks`` of ``resnet18``; ``layers`` of the text models; ``length`` (the
            longest) of ``char_transformer``; ``width`` of all but ``mlp`` and
            ``logistic``.

    Returns:
        The model, a Flax module.

    Raises:
        ConfigError: There is no such model or option, or an option's value is wrong.

    Example:
        >>> make("mlp", classes=10, hidden=(32,)).hidden
        (32,)
    """
    if name not in MODELS:
        raise ConfigError(
            f"fad.models.make(name={name!r}): there is no such model. "
            f"{nearest(name, MODELS, 'models')}"
        )
    _, *known = inspect.signature(MODELS[name]).parameters
    for option in options:
        if option not in known:
            raise ConfigError(
                f"fad.models.make({name!r}, {option}=...): there is no such option. "
                f"{nearest(option, known, f'options of {name}')}"
            )
    return MODELS[name](classes, **options)
