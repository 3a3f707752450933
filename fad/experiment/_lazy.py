"""Optional packages, imported where they are used."""

import importlib
from typing import Any

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
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RunError(
            f"experiments need the package {error.name!r}, which is not installed: "
            f'pip install "fad[experiments]"'
        ) from error
