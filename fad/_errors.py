"""The errors fad raises, and how they name an argument.

Every message says which call, which argument (by its pytree path), what was expected,
what came, and the likely fix.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import jax


class FadError(ValueError):
    """Base class of every error that fad raises on purpose."""


class PlacementError(FadError):
    """A value stands at the wrong placement, or has the wrong number of clients."""


class ClientValueError(FadError, TypeError):
    """A client value was used outside ``fad.map`` as if it were an array."""


class ClientAttributeError(ClientValueError, AttributeError):
    """An array attribute was asked of a client value (so ``hasattr`` stays usable)."""


class ConfigError(FadError):
    """A configuration file or flag has an unknown key, a wrong type or a bad value."""


class DataError(FadError):
    """A data set is missing or cannot be partitioned as asked."""


class PlanError(FadError):
    """A program cannot be planned, or no plan meets the constraints."""


class RunError(FadError):
    """A run folder exists, cannot be resumed, or a run went wrong."""


def path_str(root: str, path: tuple[Any, ...]) -> str:
    """Return ``root`` followed by a pytree path, as the user would write it.

    Example:
        >>> leaves = jax.tree_util.tree_leaves_with_path({"w": [1, 2]})
        >>> path_str("params", leaves[1][0])
        "params['w'][1]"
    """
    return root + jax.tree_util.keystr(path)


def describe(x: Any) -> str:
    """Return a short type for an error message, ``float32[4,3]`` or a class name.

    Example:
        >>> import jax.numpy as jnp
        >>> describe(jnp.zeros((4, 3), jnp.float32))
        'float32[4,3]'
        >>> describe("text")
        "str 'text'"
    """
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}[{','.join(str(s) for s in shape)}]"
    if x is None or isinstance(x, str | int | float | bool | complex):
        return f"{type(x).__name__} {x!r}"
    return type(x).__name__


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """Return the sentence that helps with an unknown name.

    Example:
        >>> nearest("fedavgg", ["fedavg", "fedprox"], "algorithms")
        "Did you mean 'fedavg'? Known algorithms: fedavg, fedprox."
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known {what}: {', '.join(known) or 'none'}."
