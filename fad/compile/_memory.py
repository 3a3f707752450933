"""Chunks chosen once, remembered on disk.

The file is ``chunks.json`` in ``$FAD_CACHE_DIR``, else in the user's cache folder. It
holds choices alone; deleting it costs one measurement per program.
"""

import hashlib
import json
import os
import tempfile
from typing import Any

import jax

from fad._cache_dir import cache_dir
from fad._version import __version__


def key_of(*parts: Any) -> str:
    """Return a key for a program on this machine and these versions."""
    device = jax.devices()[0].device_kind
    machine = (jax.default_backend(), device, os.cpu_count(), jax.__version__)
    text = repr((__version__, machine, parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recall(key: str) -> Any:
    """Return what was remembered, or None; a file that cannot be read is no memory."""
    return _read().get(key)


def remember(key: str, choice: dict[str, Any]) -> None:
    """Remember a choice; another process never reads a half-written file."""
    path = cache_dir() / "chunks.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = _read() | {key: choice}
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".json", delete=False
        ) as file:
            json.dump(entries, file)
        os.replace(file.name, path)
    except OSError:
        return  # A read-only home: measured again next time.


def _read() -> dict[str, Any]:
    try:
        found = json.loads((cache_dir() / "chunks.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
