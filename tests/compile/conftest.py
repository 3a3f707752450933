"""What holds in every test of the compiler."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which chunks are remembered, new in each test."""
    monkeypatch.setenv("FAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Let XLA optimise little: what is compared is the program, and it runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
