"""The same model with narrower hidden layers."""

from typing import Any, TypeVar

import flax.linen as nn

from fad._errors import ConfigError
from fad.models._cnn import FedAvgCnn, FedSepCnn
from fad.models._lstm import CharLstm
from fad.models._mlp import FedNestMlp, Mlp
from fad.models._resnet import ResNet18
from fad.submodels import kept

M = TypeVar("M", bound=nn.Module)

_SCALED = (Mlp, FedAvgCnn, FedSepCnn, ResNet18)


def narrow(model: M, width: float | tuple[float, ...], *, scaled: bool = False) -> M:
    """Return the same model with a share of the units of every hidden layer.

    A layer of ``size`` units, channels or embedded numbers has
    ``fad.submodels.kept(size, width)`` of them. Of a ``ResNet18`` with group norm each
    of both groups has that share of its channels.

    Args:
        model: One of ``fad.models``.
        width: The share, in (0, 1]; 1 gives the model itself. Of ``Mlp`` and
            ``FedAvgCnn`` also a tuple of one for each hidden layer.
        scaled: Whether hidden outputs are divided by the width, as HeteroFL's scaler
            does in training.

    Returns:
        The narrower model.

    Raises:
        ConfigError: The model has no hidden layer that can be narrower, no scaler, or
            another number of hidden layers than there are widths.
        FadError: A width is not in (0, 1].

    Example:
        >>> from fad import models
        >>> narrow(models.Mlp((64, 10), 10), 0.25).hidden
        (16, 3)

    Source: E. Diao, J. Ding, V. Tarokh, HeteroFL: Computation and Communication
    Efficient Federated Learning for Heterogeneous Clients, ICLR 2021, section 3.
    """
    name = type(model).__name__
    for share in width if isinstance(width, tuple) else (width,):
        kept(1, share)
    if width == 1:
        return model
    if isinstance(width, tuple):
        changes = _by_layer(model, width)
    else:
        changes = _narrower(model, width)
    if changes is None:
        raise ConfigError(
            f"fad.models.narrow({name}, width={width}): the model has no hidden layer "
            "that can be narrower. Choose another model, or width=1."
        )
    if not scaled:
        return model.clone(**changes)
    if isinstance(width, tuple) or not isinstance(model, _SCALED):
        known = ", ".join(each.__name__ for each in _SCALED)
        raise ConfigError(
            f"fad.models.narrow({name}, scaled=True): the model has no scaler for "
            f"that; those with one, for one width, are {known}. Set scaled to False, "
            "or choose one of them."
        )
    return model.clone(**changes, scale=model.scale * width)


def _by_layer(model: nn.Module, widths: tuple[float, ...]) -> dict[str, Any]:
    """Return the attributes of the model whose hidden layers have these shares."""
    attribute = {Mlp: "hidden", FedAvgCnn: "width"}.get(type(model), "")
    sizes = {"hidden": "hidden", "width": "widths"}.get(attribute, "")
    layers = getattr(model, sizes, ())
    if not layers or len(layers) != len(widths):
        raise ConfigError(
            f"fad.models.narrow({type(model).__name__}, width={widths}): expected one "
            f"width, or for Mlp and FedAvgCnn one for each of its {len(layers)} hidden "
            f"layers; got {len(widths)}."
        )
    return {attribute: tuple(map(kept, layers, widths))}


def _narrower(model: nn.Module, width: float) -> dict[str, Any] | None:
    """Return the attributes of the narrower model; None where there is none."""
    match model:
        case Mlp(hidden=sizes) if sizes:
            return {"hidden": tuple(kept(size, width) for size in sizes)}
        case FedNestMlp() | FedSepCnn():
            return {"width": kept(model.width, width)}
        case FedAvgCnn():
            return {"width": tuple(kept(size, width) for size in model.widths)}
        case ResNet18():
            groups = 2 if model.norm == "group" else 1
            sizes = [groups * kept(size // groups, width) for size in model.widths]
            return {"width": tuple(sizes)}
        case CharLstm():
            embedding = kept(model.embedding, width)
            return {"embedding": embedding, "width": kept(model.width, width)}
    return None
