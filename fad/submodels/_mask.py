"""A model whose units are weighed, as a function of the whole model's shape."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from fad._errors import FadError
from fad.submodels._check import check_vectors, differences, leaves
from fad.submodels._units import Place, Unit, Units


def masked(
    units: Units,
    params: Any,
    masks: Mapping[str, jax.Array],
    *,
    places: Literal["inputs", "all"] = "inputs",
) -> Any:
    """Multiply the parameters of each unit by its number, ``[*s] -> [*s]``.

    With zeros and ones it is the sub-model of the units that have a one, in the whole
    model's shape. ``"inputs"`` multiplies the weights with which the next layers take a
    unit in, as if its output was multiplied: the sub-model gives the same results, but
    for norms over units, and a unit that is off has a derivative: what it would have
    added. (A unit that nothing takes in by a matrix has all of its places multiplied.)
    ``"all"`` multiplies all of its places: what no unit of the sub-model holds is zero.

    Args:
        units: The model's units, as ``fad.submodels.find`` gives them.
        params: Its parameters.
        masks: A number for each unit, ``[size]``, by the group's name.
        places: Which of a unit's parameters to multiply.

    Returns:
        The parameters, in their dtypes; differentiable in them and in the masks.

    Raises:
        FadError: ``masks`` or ``params`` do not fit the units, or there are no such
            places.

    Example:
        >>> from fad.submodels import find
        >>> params = {"hidden": jnp.ones((3, 2)), "out": jnp.ones((2, 2))}
        >>> model = lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["out"]
        >>> units = find(model, params, jnp.ones((5, 3)))
        >>> masked(units, params, {"hidden": jnp.array([1.0, 0.0])})["out"].tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """
    check_vectors("masked", "masks", masks, units.sizes)
    wrong = differences(units.params, params, "the model's is", "the given is")
    if wrong or places not in ("inputs", "all"):
        raise FadError(
            "fad.submodels.masked: expected the whole model's parameters, and places "
            f"'inputs' or 'all'; got {places!r}\n{wrong}"
        )
    arrays = {keystr(path): jnp.asarray(x) for path, x in leaves(params).items()}
    for group in units.groups:
        for leaf, axis, before, after in _chosen(group, arrays, places):
            x = arrays[leaf]
            shape = [1] * x.ndim
            shape[axis] = -1
            mask = jnp.asarray(masks[group.name]).astype(x.dtype)
            mask = jnp.tile(jnp.repeat(mask, after), before).reshape(shape)
            arrays[leaf] = x * mask
    return jax.tree.structure(params).unflatten(arrays.values())


def _chosen(
    group: Unit, arrays: Mapping[str, jax.Array], places: str
) -> Iterable[Place]:
    """Return a group's places; kernels take in by their last axis but one."""
    into = [p for p in group.places if 0 <= p.axis == arrays[p.leaf].ndim - 2]
    return into if into and places == "inputs" else group.places
