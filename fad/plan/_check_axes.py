"""Finding which axes of a program's arguments are the clients'."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from fad._errors import path_str
from fad.placement import AtClients, is_at_clients
from fad.plan._check_parts import whole
from fad.plan._check_values import Placed
from fad.plan._check_walk import Walk
from fad.plan._graph import aval_of


class Leaf(NamedTuple):
    """One array of a program's arguments or outputs."""

    path: str
    aval: Any
    levels: int  # how many AtClients stand around it


def named_arguments(fn: Callable, args: tuple, kwargs: dict) -> list[tuple[str, Any]]:
    """Pair arguments with their names, in the order in which JAX flattens them."""
    try:
        known = list(inspect.signature(fn).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        known = []
    names = known[: len(args)] if len(known) >= len(args) else []
    names = names or [f"args[{i}]" for i in range(len(args))]
    return [*zip(names, args, strict=True), *sorted(kwargs.items())]


def leaves_of(root: str, tree: Any, levels: int = 0) -> list[Leaf]:
    """Return the arrays of a tree by path, those inside ``AtClients`` too."""
    found = []
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_at_clients)
    for path, value in flat:
        at = path_str(root, path)
        if isinstance(value, AtClients):
            found += leaves_of(at, value.unsafe_gather(), levels + 1)
        else:
            found.append(Leaf(at, value, levels))
    return found


class FindAxes(Walk):
    """Find the client axes of arguments and closed-over arrays: those that maps read.

    A cohort per round is one argument whose *second* axis is the clients', since a scan
    reads it slice by slice; so each axis is followed until a map or sum has it in
    front. Where as many rounds as clients leave that open (a square array, transposed
    but not sliced on its way to a map), the first axis counts, as ``AtClients`` says.
    Also finds whether there is anything federated at all.
    """

    def __init__(self, leaves: Sequence[Leaf]):
        super().__init__()
        self.federated = False
        self.consts: dict[int, Any] = {}
        self._shapes: dict[Any, tuple[int, ...]] = {}
        self._levels: dict[Any, int] = {}
        self._found: dict[Any, list[tuple[int, int]]] = {}  # label -> (depth, axis)
        self.values = [
            self._value(i, jax.numpy.shape(leaf.aval), leaf.levels)
            for i, leaf in enumerate(leaves)
        ]

    def _value(self, label: Any, shape: tuple[int, ...], levels: int) -> Placed:
        self._shapes[label], self._levels[label] = shape, levels
        axes = range(len(shape)) if levels else ()
        return Placed({a: frozenset({(label, a)}) for a in axes})

    def axes(self, label: Any) -> dict[int, frozenset]:
        """Return the client axes of an argument (by position) or a constant (by id)."""
        found, levels = self._found.get(label, []), self._levels[label]
        axes = []
        for depth in range(levels):
            at = [a for d, a in found if d == depth and a not in axes]
            default = [] if isinstance(label, str) else [depth]
            axes += [min(at)] if at else default
        shape = self._shapes[label]
        return {a: whole(shape[a]) for a in axes}

    def sizes(self) -> set[int]:
        """Return the numbers of clients of the arguments and constants read."""
        first = {
            label: [a for d, a in found if d == 0]
            for label, found in self._found.items()
        }
        return {self._shapes[label][min(axes)] for label, axes in first.items() if axes}

    def lost(self, eqn, value, atom, why):
        """Go on: finding is not judging."""

    def hosted(self, eqn, value, atom):
        """Go on."""

    def stuck(self, eqn):
        """Leave it to the checker to refuse."""
        self.federated = True

    def closed_over(self, const):
        """Follow the axes of a constant too: client data may be closed over."""
        self.consts[id(const)] = const
        return self._value(f"const {id(const)}", jax.numpy.shape(const), 1)

    def mapped(self, eqn, ins):
        """Note which axes a map or a sum has in front."""
        self.federated = True
        for x, atom in zip(ins, eqn.invars, strict=True):
            for label, axis in x.axes.get(0, ()):
                shape = self._shapes[label]
                leads = shape[:1] == (eqn.params["clients"],)
                # A square array that is only turned over has its clients in front.
                turned = axis > 0 and leads and aval_of(atom).ndim >= len(shape)
                if self.depth < self._levels[label] and not (turned and not self.depth):
                    self._found.setdefault(label, []).append((self.depth, axis))
