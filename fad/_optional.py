"""Optional packages, imported where they are used."""

import importlib
from typing import Any

from fad._errors import FadError


def require(
    module: str,
    error: type[FadError],
    needs: str,
    hint: str = "",
    *,
    extra: str = "experiments",
) -> Any:
    """Import a module of an extra.

    Args:
        module: Its dotted name.
        error: What is raised where it is not installed.
        needs: Who needs it, "drawing needs".
        hint: What to do without it.
        extra: The extra that installs it.

    Returns:
        The module.

    Raises:
        FadError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise error(
            f"{needs} the package {missing.name!r}, which is not installed: "
            f'pip install "fad[{extra}]"{hint}'
        ) from missing
