"""What a model's units refuse: names, numbers and shapes that are not theirs."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax

from fad._errors import FadError, describe, nearest, path_str


def check_names(
    call: str, argument: str, given: Iterable[str], known: Collection[str]
) -> None:
    """Refuse names of no group of units."""
    for name in given:
        if name not in known:
            raise FadError(
                f"fad.submodels.Units.{call}({argument}=...): there are no units "
                f"{name!r}. {nearest(str(name), known, 'units')}"
            )


def _check_all(
    call: str, argument: str, given: Iterable[str], known: Collection[str]
) -> None:
    given = list(given)
    check_names(call, argument, given, known)
    missing = [name for name in known if name not in given]
    if missing:
        raise FadError(
            f"fad.submodels.Units.{call}({argument}=...): there is nothing for the "
            f"units {', '.join(missing)}. Give an entry for each group."
        )


def check_counts(call: str, kept: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Refuse what is not a possible number of units for each group."""
    _check_all(call, "kept", kept, sizes)
    for name, size in sizes.items():
        count = kept[name]
        if not isinstance(count, int) or not 1 <= count <= size:
            raise FadError(
                f"fad.submodels.Units.{call}: kept[{name!r}] is {describe(count)}; "
                f"expected an int from 1 to the group's {size} units. "
                "Units.kept(width) gives it."
            )


def check_vectors(
    call: str, argument: str, given: Any, sizes: Mapping[str, int | None]
) -> None:
    """Refuse what is not a vector for each group, of its size where that is known."""
    _check_all(call, argument, given, sizes)
    for name, size in sizes.items():
        shape = getattr(given[name], "shape", ())
        if len(shape) != 1 or size not in (None, shape[0]):
            raise FadError(
                f"fad.submodels.Units.{call}: {argument}[{name!r}] is "
                f"{describe(given[name])}; expected an array [{size or 'k'}]."
            )


def leaves(tree: Any) -> dict[tuple[Any, ...], Any]:
    """Return the leaves of a pytree by their paths."""
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def differences(mine: Any, other: Any, is_mine: str, is_other: str) -> str:
    """Return a line for each leaf whose shapes differ, or that one tree lacks."""

    def shape(tree: Mapping, path: tuple[Any, ...]) -> tuple[int, ...] | None:
        return getattr(tree[path], "shape", ()) if path in tree else None

    def text(tree: Mapping, path: tuple[Any, ...]) -> str:
        return describe(tree[path]) if path in tree else "missing"

    a, b = leaves(mine), leaves(other)
    return "\n".join(
        f"  {path_str('params', path)}: {is_mine} {text(a, path)}, {is_other} "
        f"{text(b, path)}"
        for path in {**a, **b}
        if shape(a, path) != shape(b, path)
    )
