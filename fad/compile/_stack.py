"""The client values of a scan's iterations, computed again where they are read.

The forward scan of a reverse pass would stack what every client kept of every round,
``[rounds, n, *s]``. Instead it stacks what the *server* sent in each round, and the
backward scan computes the rest again: one checkpoint per round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fad.compile._nodes import Out, Rows, Sent, leaves, rebuild
from fad.compile._rows import Padded


@dataclass(eq=False, repr=False)
class Stack:
    """The values of a scan's iterations.

    Attributes:
        root: The value of one iteration: a graph whose leaves hold that iteration's
            arrays, or again a ``Stack``.
        arrays: By key of such an array (``parts``): that of all iterations. What is
            missing is the same in all.
        scan: Marks the values of one scan: what they share is computed once.
    """

    root: Any
    arrays: dict[int, Any]
    scan: Any


def is_deferred(value: Any) -> bool:
    """Say whether a value is a client value that is not computed yet."""
    return isinstance(value, Sent | Rows | Out | Stack)


def parts(value: Any) -> dict[int, Any]:
    """Return the arrays that a deferred value is made from, by key."""
    if isinstance(value, Stack):
        return value.arrays
    return {id(leaf): leaf.array for leaf in leaves([value])}


def iteration(stacks: Sequence[Stack], slices: Sequence[dict[int, Any]]) -> list[Any]:
    """Return the values of one iteration, from its slices of ``Stack.arrays``."""
    memos: dict[int, dict[int, Any]] = {}
    out = []
    for stack, arrays in zip(stacks, slices, strict=True):
        if isinstance(stack.root, Stack):
            merged = {**stack.root.arrays, **arrays}
            out.append(Stack(stack.root.root, merged, stack.root.scan))
            continue
        memo = memos.setdefault(id(stack.scan), {})
        for leaf in leaves([stack.root]):
            if id(leaf) in arrays and id(leaf) not in memo:
                memo[id(leaf)] = type(leaf)(arrays[id(leaf)])
        out += rebuild([stack.root], memo)
    return out


class Ys:
    """The stacked outputs of a scan, some of them deferred.

    Args:
        outer: Arrays that are the same in all iterations.
        xs: What the scan reads by slices: arrays, or the ``arrays`` of a ``Stack``.
    """

    def __init__(self, outer: Sequence[Any], xs: Sequence[Any]):
        self._outer, self._xs = {id(_inner(a)) for a in outer}, xs
        self._values: list[Any] = []
        self._places: list[Any] = []

    def stack(self, values: Sequence[Any], slices: Sequence[Any]) -> list[Any]:
        """Return the arrays to stack, in one iteration."""
        known: dict[int, tuple] = {}
        for i, part in enumerate(slices):
            by_key = part if isinstance(part, dict) else {None: _inner(part)}
            known.update({id(a): ("x", i, key) for key, a in by_key.items()})
        out: list[Any] = []

        def put(array: Any) -> tuple:
            if id(array) not in known:
                known[id(array)] = ("y", len(out), None)
                out.append(array)
            return known[id(array)]

        self._values, self._places = list(values), []
        for value in values:
            if not is_deferred(value):
                self._places.append(("y", len(out), None))
                out.append(_inner(value))
                continue
            arrays = {k: a for k, a in parts(value).items() if id(a) not in self._outer}
            self._places.append({k: put(a) for k, a in arrays.items()})
        return out

    def unstack(self, ys: Sequence[Any]) -> list[Any]:
        """Return the scan's stacked outputs."""

        def find(place: tuple) -> Any:
            kind, i, key = place
            source = ys[i] if kind == "y" else self._xs[i]
            return _inner(source) if key is None else source[key]

        out = []
        for value, place in zip(self._values, self._places, strict=True):
            if isinstance(place, dict):
                found = {k: find(p) for k, p in place.items()}
                out.append(Stack(value, found, self))
            else:
                stack = find(place)
                is_padded = isinstance(value, Padded)
                out.append(value.stacked(stack) if is_padded else stack)
        return out


def _inner(x: Any) -> Any:
    return x.array if isinstance(x, Padded) else x
