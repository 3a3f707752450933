"""Who holds what in a round of clients with slices: means, metrics, warnings."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def of_all(sums: Any, weights: Any, total: jax.Array) -> Any:
    """Return coverage means as means over all clients, zero where one has nothing."""
    total = jnp.where(total > 0, total, jnp.ones_like(total))
    return jax.tree.map(
        lambda a, w: a * (w / total.astype(w.dtype)).astype(a.dtype), sums, weights
    )


def uncovered(
    counts: Any, prefix: str = "", *, named: Callable[[Any], bool] = lambda path: True
) -> dict[str, jax.Array]:
    """Return how many coordinates nobody has: in all, and of each leaf that is named.

    Args:
        counts: Each coordinate's number of clients, or their weight.
        prefix: What the leaves' names begin with.
        named: Whether ``named(path)`` of a leaf is to be told. Those whose keys follow
            from clients' data are not: what is of no client of the round's is nobody's.
    """
    metrics = {"uncovered": jnp.zeros(())}
    for path, c in jax.tree_util.tree_leaves_with_path(counts):
        none = jnp.sum(c == 0, dtype=jnp.result_type(float))
        metrics["uncovered"] += none
        if named(path):
            metrics[f"uncovered/{prefix}{jax.tree_util.keystr(path)}"] = none
    return metrics


def coverage(counts: Sequence[Any], public: Sequence[bool]) -> dict[str, jax.Array]:
    """Return the least numbers of clients of x and of y, and how much nobody has."""
    metrics, total = {}, jnp.zeros(())
    for name, level, named in zip("xy", counts, public, strict=True):
        least = [jnp.min(c) for c in jax.tree.leaves(level)]
        metrics[f"coverage_{name}"] = jnp.min(jnp.stack(least))
        metrics |= uncovered(level, name, named=lambda path, named=named: named)
        total += metrics["uncovered"]
    return metrics | {"uncovered": total}


def warn(metrics: dict[str, float], told: set[str]) -> None:
    """Warn of each leaf that nobody holds fully, once."""
    for name, count in metrics.items():
        path = name.removeprefix("uncovered/")
        if path != name and count and path not in told:
            told.add(path)
            warnings.warn(
                f"{path}: {count:.0f} of its entries are held by no client of the "
                "round, and stay as they are. Draw more clients, give one tier the "
                "width 1, or choose units that roll or are random.",
                stacklevel=2,
            )
