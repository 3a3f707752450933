"""The arguments of a function to differentiate, checked by path, and the rest."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import FadError, describe, path_str


class Problem(NamedTuple):
    """A function of its differentiated arguments and its other arrays.

    Attributes:
        name: The call, for messages.
        fn: ``fn(chosen, rest) -> (value, aux)``.
        chosen: The differentiated arguments, a tuple.
        rest: The other arguments, with None for what is no array.
    """

    name: str
    fn: Callable[[tuple, Any], tuple[Any, Any]]
    chosen: tuple
    rest: Any


def normalise(argnums: int | Sequence[int], call: str, args: tuple) -> tuple[int, ...]:
    """Return ``argnums`` as non-negative positions.

    Raises:
        FadError: If one is no position of an argument.
    """
    numbers = (argnums,) if isinstance(argnums, SupportsIndex) else tuple(argnums)
    for i in numbers:
        if not isinstance(i, SupportsIndex) or not -len(args) <= i < len(args):
            raise FadError(
                f"{call}: argnums={argnums!r}, but the call has {len(args)} positional "
                "arguments; expected ints that name some of them."
            )
    positions = tuple(operator.index(i) % len(args) for i in numbers)
    if len(set(positions)) < len(positions):
        raise FadError(f"{call}: argnums={argnums!r} names an argument twice.")
    return positions


def problem(
    call: str,
    fn: Callable,
    argnums: tuple[int, ...],
    args: tuple,
    kwargs: dict,
    *,
    has_aux: bool,
) -> Problem:
    """Take the arguments apart.

    Raises:
        FadError: If a leaf of a differentiated argument is no real array.
    """
    for i in argnums:
        for path, leaf in jax.tree_util.tree_leaves_with_path(args[i]):
            if not _differentiable(leaf):
                raise FadError(
                    f"{call}: {path_str(f'args[{i}]', path)} is {describe(leaf)}; "
                    "expected real numbers to differentiate by. Choose other argnums, "
                    "or make it a float array."
                )
    others = [a for i, a in enumerate(args) if i not in argnums]
    rest = jax.tree.map(lambda x: x if _is_array(x) else None, (others, kwargs))

    def of(chosen: tuple, arrays: Any) -> tuple[Any, Any]:
        others_, kwargs_ = jax.tree.map(
            lambda x, a: x if a is None else a,
            (others, kwargs),
            arrays,
            is_leaf=lambda x: x is None,
        )
        given, fixed = iter(chosen), iter(others_)
        by_number = dict(zip(argnums, given, strict=True))
        full = [
            by_number[i] if i in by_number else next(fixed) for i in range(len(args))
        ]
        out = fn(*full, **kwargs_)
        return (out[0], _arrays(call, out[1])) if has_aux else (out, None)

    of.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return Problem(call, of, tuple(args[i] for i in argnums), rest)


def _arrays(call: str, aux: Any) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if not (_is_array(leaf) or isinstance(leaf, bool | int | float | complex)):
            raise FadError(
                f"{call}: {path_str('aux', path)} is {describe(leaf)}; expected arrays "
                "or numbers. Return names and options outside the function."
            )
    return jax.tree.map(jnp.asarray, aux)


def check_scalar(call: str, value: Any) -> None:
    """Refuse a value that has no gradient.

    Raises:
        FadError: If it is no real scalar.
    """
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise FadError(
            f"{call}: the function returned {describe(value)}; expected one real "
            "number, []. Reduce it (fad.mean over clients, jnp.mean at the server), or "
            "use fad.jacobian."
        )


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _differentiable(x: Any) -> bool:
    if isinstance(x, bool | int | str) or not (_is_array(x) or isinstance(x, float)):
        return False
    return jnp.issubdtype(getattr(x, "dtype", jnp.float32), jnp.floating)
