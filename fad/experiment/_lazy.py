"""Optional packages, imported where they are used."""

from typing import Any

from fad import _optional
from fad._errors import RunError


def require(module: str) -> Any:
    """Import a module of the ``experiments`` extra.

    Args:
        module: Its dotted name.

    Returns:
        The module.

    Raises:
        RunError: It is not installed.
    """
    return _optional.require(module, RunError, "experiments need")
