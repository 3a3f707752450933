"""A run of several processes: all compute; process 0 alone writes and speaks."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fad._errors import FadError, RunError
from fad.distributed import clients, guard, local_range
from fad.distributed._gather import gather, gather_text
from fad.placement import AtClients

_CALL = "fad.experiment.run"


def leads() -> bool:
    """Say whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def by_first(do: Callable[[], Any]) -> None:
    """Do something in process 0 alone, while the others wait.

    Raises:
        FadError: In process 0, what it raised.
        RunError: In the others, the same text.
    """
    error = None
    try:
        if leads():
            do()
    except FadError as raised:
        error = raised
    with guard(_CALL):
        text = gather_text(str(error or ""))[0]
    if text:
        raise error or RunError(text)


def any_of(flag: bool) -> bool:
    """Say whether it is true in any process."""
    with guard(_CALL):
        return bool(gather(np.array([flag])).any())


def own_clients(cohort: Any, mesh: Mesh | None) -> Any:
    """Put a cohort on the mesh, each process its own clients."""
    if mesh is None or not isinstance(cohort, AtClients):
        return cohort
    mine = local_range(cohort.num_clients, mesh)
    own = jax.tree.map(lambda x: x[mine], cohort.unsafe_gather())
    return clients(own, mesh, n=cohort.num_clients)


def all_rows(memories: Any, mesh: Mesh | None) -> Any:
    """Return the rows of all clients, also those of other processes."""
    if mesh is None or jax.process_count() == 1:
        return jax.device_get(_rows(memories))
    everywhere = NamedSharding(mesh, PartitionSpec())
    with guard(_CALL):
        whole = jax.jit(lambda x: x, out_shardings=everywhere)(_rows(memories))
        return jax.device_get(own_copy(whole, mesh))


def _rows(memories: Any) -> Any:
    if isinstance(memories, AtClients):
        return memories.unsafe_gather()
    return jax.tree.map(lambda x: x[: memories.num_clients], memories.tree)


def own_copy(tree: Any, mesh: Mesh | None) -> Any:
    """Return what lies on every device from one of this process's own."""
    return tree if mesh is None else jax.tree.map(lambda x: x.addressable_data(0), tree)
