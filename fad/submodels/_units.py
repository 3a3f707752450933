"""The hidden units of a model, and its slices for some of them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from fad._errors import FadError
from fad.submodels import _extract
from fad.submodels._check import (
    check_counts,
    check_names,
    check_vectors,
    differences,
    leaves,
)
from fad.submodels._choose import check_rule, choose


class Place(NamedTuple):
    """Where units stand in a parameter: its axis is ``[before, size, after]``.

    Attributes:
        leaf: The parameter's path, as ``jax.tree_util.keystr`` writes it.
        axis: The axis of the parameter.
        before: Entries of the axis outside a run of all units: 4 for stacked gates.
        after: Entries of the axis for each unit.
    """

    leaf: str
    axis: int
    before: int
    after: int


class Unit(NamedTuple):
    """A group of hidden units: neurons or channels, with all of their places.

    Attributes:
        name: The layer that makes them, ``"Dense_0"``.
        size: How many they are.
        places: Where they stand in the parameters.
    """

    name: str
    size: int
    places: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Units:
    """The hidden units of a model, as ``fad.submodels.find`` finds them.

    Attributes:
        groups: The groups of units.
        params: The parameters' shapes, a pytree of ``jax.ShapeDtypeStruct``.

    Example:
        >>> from fad.submodels import find
        >>> params = {"hidden": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
        >>> model = lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["out"]
        >>> units = find(model, params, jnp.ones((5, 3)))
        >>> kept = units.kept(0.25)
        >>> kept, units.shapes(kept)["out"].shape
        ({'hidden': 2}, (2, 2))
        >>> keys = units.keys(units.choose("rolling", kept, round=7))
        >>> {
        ...     name: {d: i.tolist() for d, i in key.items()}
        ...     for name, key in keys.items()
        ... }
        {'hidden': {1: [7, 0]}, 'out': {0: [7, 0]}}
    """

    groups: tuple[Unit, ...]
    params: Any

    @property
    def sizes(self) -> dict[str, int]:
        """The number of units of each group."""
        return {group.name: group.size for group in self.groups}

    def kept(self, width: float | Mapping[str, float]) -> dict[str, int]:
        """Return how many units of each group a model of this width keeps.

        Args:
            width: A share in (0, 1] for all groups, or one by name; others keep all.

        Returns:
            ``fad.submodels.kept(size, width)`` by the group's name.

        Raises:
            FadError: A width is not in (0, 1], or a name is not known.
        """
        shares = (
            width if isinstance(width, Mapping) else dict.fromkeys(self.sizes, width)
        )
        check_names("kept", "width", shares, self.sizes)
        return {
            name: _extract.kept(size, shares.get(name, 1.0))
            for name, size in self.sizes.items()
        }

    def choose(
        self,
        rule: str,
        kept: Mapping[str, int],
        *,
        round: Any = None,
        key: jax.Array | None = None,
        params: Any = None,
        scores: Mapping[str, jax.Array] | None = None,
    ) -> dict[str, jax.Array]:
        """Choose units of each group.

        Args:
            rule: ``"static"``, the first ones; ``"rolling"``, the window of this
                ``round``; ``"random"``, by ``key``; ``"magnitude"``, the largest norms
                in ``params``; ``"learned"``, the largest ``scores``.
            kept: How many of each group, by name.
            round: The round's number.
            key: A random key; each group has its own fold of it.
            params: The model's parameters.
            scores: A score for each unit, ``[size]``, by the group's name.

        Returns:
            The units' numbers, ``[k]`` int32, by the group's name.

        Raises:
            FadError: There is no such rule, its input is missing, or ``kept`` or
                ``scores`` do not fit the groups.
        """
        given = {"round": round, "key": key, "params": params, "scores": scores}
        check_rule(rule, given)
        check_counts("choose", kept, self.sizes)
        if rule == "magnitude":
            scores = self.scores(params)
        if rule in ("magnitude", "learned"):
            check_vectors("choose", "scores", scores, self.sizes)
        of = scores or {}
        return {
            name: choose(
                rule, i, size, kept[name], round=round, key=key, score=of.get(name)
            )
            for i, (name, size) in enumerate(self.sizes.items())
        }

    def keys(self, chosen: Mapping[str, jax.Array]) -> Any:
        """Return which slices of the parameters hold the chosen units, for one client.

        Args:
            chosen: The units' numbers, ``[k]``, by the group's name.

        Returns:
            A tree like the parameters: None where a parameter is held whole, otherwise
            its indices by axis, ``{axis: [before * k * after]}`` int32.

        Raises:
            FadError: ``chosen`` does not fit the groups.
        """
        check_vectors("keys", "chosen", chosen, dict.fromkeys(self.sizes))
        found: dict[str, dict[int, Any]] = {}
        for group, place in self._places():
            units = jnp.asarray(chosen[group.name], jnp.int32)
            outer = np.arange(place.before, dtype=np.int32)[:, None, None] * group.size
            inner = np.arange(place.after, dtype=np.int32)[None, None]
            entries = (outer + units[None, :, None]) * place.after + inner
            found.setdefault(place.leaf, {})[place.axis] = entries.reshape(-1)
        return self._tree(lambda path, _: found.get(path))

    def shapes(self, kept: Mapping[str, int]) -> Any:
        """Return the shapes of the slices that hold so many units of each group.

        Args:
            kept: How many of each group, by name.

        Returns:
            A tree like the parameters, of ``jax.ShapeDtypeStruct``.

        Raises:
            FadError: ``kept`` does not fit the groups.
        """
        check_counts("shapes", kept, self.sizes)
        sizes = {
            (place.leaf, place.axis): place.before * kept[group.name] * place.after
            for group, place in self._places()
        }

        def cut(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
            shape = [sizes.get((path, d), n) for d, n in enumerate(leaf.shape)]
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

        return self._tree(cut)

    def fit(self, params: Any) -> dict[str, int]:
        """Return how many units of each group a narrow model has.

        Args:
            params: The narrow model's parameters, arrays or shapes.

        Returns:
            The number of its units by the group's name.

        Raises:
            FadError: ``params`` are no slices of the model's, as in ``check``.
        """
        narrow = {keystr(path): leaf for path, leaf in leaves(params).items()}
        kept = {}
        for group in self.groups:
            leaf, axis, *around = group.places[0]
            shape = narrow[leaf].shape if leaf in narrow else ()
            entries = shape[axis] if axis < len(shape) else group.size
            kept[group.name] = min(max(1, entries // math.prod(around)), group.size)
        self.check(params, kept)
        return kept

    def check(self, params: Any, kept: Mapping[str, int]) -> None:
        """Refuse a narrow model whose parameters have not the slices' shapes.

        Args:
            params: The narrow model's parameters, arrays or shapes.
            kept: How many units of each group the slices hold, by name.

        Raises:
            FadError: Naming each parameter that disagrees, with both shapes.
        """
        wrong = differences(
            self.shapes(kept), params, "the slice is", "the narrow model's"
        )
        if wrong:
            raise FadError(
                f"fad.submodels.Units.check: with the units {dict(kept)} the mask "
                f"disagrees with a layer's structure:\n{wrong}\nMake the narrow "
                "model's hidden widths fad.submodels.kept(size, width), or take the "
                "units that it has, Units.fit(params)."
            )

    def scores(self, params: Any) -> dict[str, jax.Array]:
        """Return the norm of all that each unit's places hold, ``[size]`` by group.

        It is the 2-norm over the incoming and outgoing weights, taken in float32, or in
        float64 where a parameter has it.

        Args:
            params: The model's parameters.

        Returns:
            The norms by the group's name.

        Raises:
            FadError: A parameter has another shape than the model's.
        """
        wrong = differences(self.params, params, "the model's is", "the given is")
        if wrong:
            raise FadError(
                f"fad.submodels.Units.scores(params=...): expected the whole model's "
                f"parameters; got others:\n{wrong}"
            )
        arrays = {keystr(path): jnp.asarray(x) for path, x in leaves(params).items()}
        wide = any(x.dtype == jnp.float64 for x in arrays.values())
        dtype = jnp.float64 if wide else jnp.float32
        squares: dict[str, list[jax.Array]] = {name: [] for name in self.sizes}
        for group, place in self._places():
            x = jnp.moveaxis(arrays[place.leaf], place.axis, 0).astype(dtype)
            x = jnp.square(x.reshape(place.before, group.size, -1))
            squares[group.name].append(jnp.sum(x, (0, 2)))
        return {
            name: jnp.sqrt(sum(parts[1:], parts[0])) for name, parts in squares.items()
        }

    def _places(self) -> Iterator[tuple[Unit, Place]]:
        return ((group, place) for group in self.groups for place in group.places)

    def _tree(self, fn: Callable[[str, Any], Any]) -> Any:
        """Return ``fn(path, shape)`` for each parameter, in a tree like theirs."""
        structure = jax.tree.structure(self.params)
        return structure.unflatten(
            [fn(keystr(path), leaf) for path, leaf in leaves(self.params).items()]
        )
