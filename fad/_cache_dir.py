"""The folder of what fad remembers between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return ``$FAD_CACHE_DIR``, else the folder in the user's cache folder."""
    given = os.environ.get("FAD_CACHE_DIR")
    if given:
        # A home folder that is not known stays as it is written.
        return Path(os.path.expanduser(given))
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fad"
