"""What holds in every test of the solvers."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Let XLA optimise little: what is compared is the program, and it runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
