"""Sub-cohorts: runs of a cohort's clients, by static slices of the client axis.

A client axis carries, among its labels, which clients stand on it; none where it is
made of server values, which are no one's in particular.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fad._compat import JaxprEqn, Literal
from fad.plan._check_values import Labels
from fad.plan._types import aval_of


class Part(NamedTuple):
    """The clients from ``start`` to before ``stop``, ``of`` so many."""

    start: int
    stop: int
    of: int

    def __str__(self) -> str:
        return f"{self.start} to {self.stop - 1} of {self.of}"


def whole(clients: int) -> Labels:
    """Return the label of a client axis with all its clients."""
    return frozenset({Part(0, clients, clients)})


def parts(labels: Labels) -> list[Part]:
    """Return the sub-cohorts among an axis's labels."""
    return sorted(p for p in labels if isinstance(p, Part))


def runs(labels: Labels) -> list[Part]:
    """Return the sub-cohorts that are less than a cohort.

    Whose clients stand beside a whole cohort's is for the program's arguments to say:
    keys of a tier, for one, come with as many clients as it has.
    """
    return [p for p in parts(labels) if p.stop - p.start < p.of]


def clients_of(labels: Labels) -> Labels:
    """Return what labels say of the clients alone."""
    return frozenset(parts(labels))


def run(eqn: JaxprEqn, axis: int) -> tuple[int, int] | None:
    """Return the run of an axis that a slice takes, if it is known and has no gaps."""
    name, p = eqn.primitive.name, eqn.params
    if name == "slice" and (p["strides"] is None or p["strides"][axis] == 1):
        return p["start_indices"][axis], p["limit_indices"][axis]
    if name == "dynamic_slice" and isinstance(at := eqn.invars[1 + axis], Literal):
        size, n = p["slice_sizes"][axis], aval_of(eqn.invars[0]).shape[axis]
        start = min(max(int(at.val), 0), n - size)
        return start, start + size
    return None


def cut(eqn: JaxprEqn, i: int, axis: int, labels: Labels) -> Labels | None:
    """Return an axis's labels after a slice of at least two clients, or its transpose.

    A slice's transpose puts each client back into its place, between zeros.
    """
    name = eqn.primitive.name
    if i != 0:
        return None
    if name == "pad":
        low, high, inside = eqn.params["padding_config"][axis]
        changed = [(p, Part(p.start - low, p.stop + high, p.of)) for p in parts(labels)]
        fits = all(0 <= new.start < new.stop <= new.of for _, new in changed)
        if inside or low < 0 or high < 0 or not fits:
            return None
        return (labels - {old for old, _ in changed}) | {new for _, new in changed}
    taken = run(eqn, axis)
    if taken is None or taken[1] - taken[0] < 2:
        return None
    found = parts(labels)
    first, last = taken
    new = {Part(p.start + first, p.start + last, p.of) for p in found}
    return (labels - set(found)) | new


def takes_one(eqn: JaxprEqn, axis: int) -> bool:
    """Say whether a slice takes one entry of an axis."""
    taken = run(eqn, axis)
    return taken is not None and taken[1] - taken[0] == 1


def union(found: Sequence[dict[int, Labels]]) -> tuple[dict[int, Labels], str]:
    """Join client axes; say why they do not fit, if so.

    They have to agree where a client's own entry stands, and on which clients they are.
    """
    union: dict[int, Labels] = {}
    for axes in found:
        for a, labels in axes.items():
            union[a] = union.get(a, frozenset()) | labels
    if not any(set(axes) == set(union) for axes in found):
        return union, "mixed" if union else ""
    return union, "parts" if any(len(runs(v)) > 1 for v in union.values()) else ""
