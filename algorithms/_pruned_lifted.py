"""Clients that hold any coordinates of x and y, in zeros of the full shapes.

For problems of few variables: the slices are small, what a client computes is not.
"""

from collections.abc import Callable
from typing import Any

import jax

from algorithms._pruned import Tier
from fad.estimators import Bilevel, Split
from fad.primitives import put


def lifted(
    problem: Bilevel,
    keys: Callable[..., Callable[[Split], tuple[Any, Any]]],
    like: tuple[Any, Any],
    *,
    public: tuple[bool, bool] = (True, True),
) -> Tier:
    """Return a tier of clients that put their slices into zeros of the full shapes.

    Args:
        problem: The losses, of the full x and y.
        keys: As of ``Tier``.
        like: ``(x, y)``, arrays or their shapes.
        public: As of ``Tier``.
    """

    def lift(keys: tuple[Any, Any], x: Any, y: Any) -> tuple[Any, Any]:
        x, y = (in_zeros(*each) for each in zip(keys, (x, y), like, strict=True))
        return x, y

    return Tier(problem, keys, lift, public)


def in_zeros(keys: Any, part: Any, like: Any) -> Any:
    """Return one client's slices in zeros of the shapes of ``like``."""

    def one(spec, part, like):
        by_axis = spec if isinstance(spec, dict) else {0: spec}
        if spec is None or not by_axis:
            return part
        axes, own = zip(*sorted(by_axis.items()), strict=True)

        def leaf(a, full):
            return put(a, *own, shape=full.shape, axes=[d % a.ndim for d in axes])

        return jax.tree.map(leaf, part, like)

    def is_spec(keys):
        by_axis = isinstance(keys, dict) and all(isinstance(d, int) for d in keys)
        return keys is None or by_axis

    return jax.tree.map(one, keys, part, like, is_leaf=is_spec)
