"""Atoms: the factors of an axis, and which of them number the same things.

An axis is a row of atoms whose sizes multiply to its length, the outermost first: after
a flatten of ``[h, w, c]`` the axis of ``h * w * c`` entries is ``(h, w, c)``. An axis
of length 1 has no atoms. Atoms that stand for the same thing are joined (union-find);
an atom that meets a row of smaller ones becomes that row.
"""

import math
from collections.abc import Iterable, Sequence


class Atom:
    """One factor of an axis; ``pinned`` if nothing of it may be cut out."""

    __slots__ = ("contracted", "parts", "pinned", "regrouped", "same", "size")

    def __init__(self, size: int, *, pinned: bool = False, contracted: bool = False):
        self.size = size
        self.pinned = pinned
        self.contracted = contracted  # summed out in a product with other values
        self.regrouped = False  # its parts were made by a reshape of the model
        self.same: Atom | None = None  # the atom that it was joined to
        self.parts: tuple[Atom, ...] = ()


Axis = tuple[Atom, ...]
Value = Sequence[Axis]


def axis(size: int, *, pinned: bool = False) -> Axis:
    """Return a new axis of this length."""
    return () if size == 1 else (Atom(size, pinned=pinned),)


def value(shape: Iterable[int], *, pinned: bool = False) -> list[Axis]:
    """Return new axes of this shape."""
    return [axis(size, pinned=pinned) for size in shape]


def root(atom: Atom) -> Atom:
    """Return the atom that stands for all that ``atom`` was joined with."""
    while atom.same is not None:
        atom = atom.same
    return atom


def factors(axis: Iterable[Atom]) -> Axis:
    """Return the smallest atoms known of an axis, each by its root."""
    found: list[Atom] = []
    for atom in map(root, axis):
        found += factors(atom.parts) if atom.parts else (atom,)
    return tuple(found)


def pin(*axes: Iterable[Atom]) -> None:
    """Say that these axes keep all their entries."""
    for atom in (atom for axis in axes for atom in factors(axis)):
        atom.pinned = True


def contract(axis: Axis) -> None:
    """Say that a product sums over this axis."""
    for atom in factors(axis):
        atom.contracted = True


def unify(a: Axis, b: Axis) -> Axis:
    """Say that two axes of one length number the same things; return the axis."""
    x, y = factors(a), factors(b)
    while x and y:
        first, second = x[0], y[0]
        small, large = sorted((first, second), key=lambda atom: atom.size)
        if first is second or first.size == second.size:
            _join(first, second)
            x, y = factors(x[1:]), factors(y[1:])
        elif small.size and large.size % small.size == 0:
            _split(large, small.size)
            x, y = factors(x), factors(y)
        else:
            break
    pin(x, y)  # what is left fits nowhere
    return a


def regroup(axes: Value, sizes: Sequence[int]) -> list[Axis]:
    """Return the axes after a reshape to ``sizes``."""
    rest, out = factors(atom for axis in axes for atom in axis), []
    for size in sizes:
        taken: list[Atom] = []
        while rest and (left := size // math.prod(atom.size for atom in taken)) > 1:
            if left % rest[0].size:
                if rest[0].size % left:
                    break
                rest[0].regrouped = True
                _split(rest[0], left)
                rest = factors(rest)
            taken.append(rest[0])
            rest = rest[1:]
        out.append(tuple(taken))
    if [math.prod(atom.size for atom in axis) for axis in out] == list(sizes):
        return out
    pin(*axes)
    return value(sizes, pinned=True)


def _join(a: Atom, b: Atom) -> None:
    if a is not b:
        b.same = a
        a.pinned |= b.pinned
        a.contracted |= b.contracted


def _split(atom: Atom, outer: int) -> None:
    atom.parts = tuple(
        Atom(size, pinned=atom.pinned, contracted=atom.contracted)
        for size in (outer, atom.size // outer)
    )
