"""What holds in every test of the compiler."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which chunks are remembered, new in each test."""
    monkeypatch.setenv("FAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
