"""Find the hidden units of a model in its jaxpr."""

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from fad._errors import FadError, path_str
from fad.submodels._atoms import Atom, Axis, Value, factors, pin, root, value
from fad.submodels._trace import Product, trace
from fad.submodels._units import Place, Unit, Units


def find(fn: Callable[..., Any], params: Any, *args: Any) -> Units:
    """Find the hidden units of the model in ``fn(params, *args)``.

    Every axis of every value is followed through the jaxpr. Axes that number the same
    things belong together: those that an elementwise operation meets, and those that a
    product sums over. What ``args`` and the result number (features, classes, rows,
    places of an image) stays whole, and so does what the program tells apart by its
    index (a slice, a sort, ``arange``) or what an unknown primitive touches. What
    remains, stands in two places of the parameters at least, and is summed over in a
    product, are units: cutting one out of all of its places leaves a smaller model of
    the same kind. (What stands in one alone is of the program: copies of a feature,
    random features.) Statistics over units, as a layer norm's, are then those of the
    remaining ones.

    Where channels are cut into groups (group norm), each group loses the same ones.
    Heads of attention and experts, the batch axes of a product, stay.

    Args:
        fn: The model or its loss; any JAX program. It is traced, not run.
        params: Its parameters, a pytree of arrays or of ``jax.ShapeDtypeStruct``; a
            tuple of pytrees for the two levels of a bilevel problem.
        args: Its other arguments, likewise.

    Returns:
        The units, in the order of the layers that make them among ``params``.

    Raises:
        FadError: ``params`` has no array, or something else.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"hidden": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
        >>> model = lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["out"]
        >>> units = find(model, params, jnp.ones((5, 3)))
        >>> units.sizes
        {'hidden': 8}
        >>> [(place.leaf, place.axis) for place in units.groups[0].places]
        [("['hidden']", 1), ("['out']", 0)]
    """
    return explore("find", fn, params, args)[0]


def explore(
    call: str, fn: Callable[..., Any], params: Any, args: tuple[Any, ...]
) -> tuple[Units, list[tuple[int, tuple[str, ...]]]]:
    """Return a model's units, and the operations of its products.

    Of each product that is the number at full width, and the groups whose share of
    units it is proportional to: twice the same one, where it is on both sides.
    """
    given = jax.tree_util.tree_leaves_with_path(params)
    wrong = [path for path, x in given if not hasattr(x, "shape")]
    if wrong or not given:
        came = path_str("params", wrong[0]) + ", which is none" if wrong else "none"
        raise FadError(
            f"fad.submodels.{call}(params=...): expected a pytree of arrays, at least "
            f"one; got {came}. Give the model's parameters."
        )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    axes = [value(leaf.shape) for _, leaf in leaves]
    jaxpr = jax.make_jaxpr(fn)(params, *args).jaxpr
    others = [value(v.aval.shape, pinned=True) for v in jaxpr.invars[len(axes) :]]
    seen: list[Product] = []
    for out in trace(jaxpr, [*axes, *others], seen):
        pin(*out)
    _settle([axis for leaf in axes for axis in leaf])
    groups = _groups(leaves, axes)
    names = {atom: group.name for atom, group in groups.items()}
    products = [
        (flops, tuple(names[a] for a in factors(sum(of, ())) if a in names))
        for flops, of in seen
    ]
    return Units(tuple(groups.values()), shapes), products


def _settle(axes: list[Axis]) -> None:
    """Pin what is no unit: what no product sums, and all but one factor of an axis."""
    for atom in factors(atom for axis in axes for atom in axis):
        atom.pinned |= not atom.contracted
    whole = {row[0] for row in map(factors, axes) if len(row) == 1}
    for parts in _regrouped(atom for axis in axes for atom in axis):
        free = [atom for atom in parts if not atom.pinned]
        # Of (7, 7, c) the c channels that other layers know, else, of (groups, size),
        # the inner factor: the number of groups is the model's own.
        known = {atom for atom in free if atom in whole} or set(free[-1:])
        pin(atom for atom in free if len(known) > 1 or atom not in known)
    free = [[atom for atom in factors(axis) if not atom.pinned] for axis in axes]
    pin(*(row for row in free if len(row) > 1))


def _regrouped(axis: Iterable[Atom]) -> list[Axis]:
    """Return what a reshape of the model made of atoms of this axis."""
    found: list[Axis] = []
    for atom in map(root, axis):
        found += [factors(atom.parts)] if atom.regrouped else _regrouped(atom.parts)
    return found


def _groups(leaves: list[tuple[Any, Any]], axes: Sequence[Value]) -> dict[Atom, Unit]:
    places: dict[Atom, list[Place]] = collections.defaultdict(list)
    makers: dict[Atom, list[tuple[bool, int]]] = collections.defaultdict(list)
    for number, ((path, leaf), rows) in enumerate(zip(leaves, axes, strict=True)):
        for at, row in enumerate(map(factors, rows)):
            for i, atom in enumerate(row):
                if not atom.pinned:
                    around = (
                        math.prod(a.size for a in r) for r in (row[:i], row[i + 1 :])
                    )
                    place = Place(jax.tree_util.keystr(path), at, *around)
                    places[atom].append(place)
                    # A layer's kernel has its outputs on its last axis.
                    makers[atom].append((at == 0 or at < leaf.ndim - 1, number))
    # What stands in one place alone has its size from the program: copies, or draws.
    first = {atom: min(at) for atom, at in makers.items() if len(places[atom]) > 1}
    atoms = sorted(first, key=lambda atom: first[atom][1])
    names = _unique([_layer(leaves[first[atom][1]][0]) for atom in atoms])
    return {
        atom: Unit(name, atom.size, tuple(places[atom]))
        for name, atom in zip(names, atoms, strict=True)
    }


def _layer(path: tuple[Any, ...]) -> str:
    """Return the path of the layer that a parameter belongs to."""
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    return "/".join(part for part in parts[:-1] if part != "params") or parts[-1]


def _unique(names: list[str]) -> list[str]:
    seen: collections.Counter[str] = collections.Counter()
    out = []
    for name in names:
        out.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return out
