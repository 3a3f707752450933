"""The mesh of all processes' devices, and which clients a process holds."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fad._errors import FadError
from fad.placement import CLIENTS


def mesh(devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """Return a mesh with an axis ``clients`` over all devices of all processes.

    Args:
        devices: The devices, of all processes; all that JAX knows if None.
        **axes: Sizes of further axes, for models that are themselves sharded:
            ``mesh(model=2)`` has the axes ``clients`` and ``model``.

    Returns:
        A mesh; the further axes vary fastest, so that the devices of one process hold
        a block of clients.

    Raises:
        FadError: If the further axes do not divide the devices, or are no sizes.

    Example:
        >>> mesh().axis_names
        ('clients',)
    """
    devices = list(jax.devices() if devices is None else devices)
    for name, size in axes.items():
        if name == CLIENTS or not isinstance(size, int) or size < 1:
            raise FadError(
                f"fad.distributed.mesh({name}={size!r}): expected the size, at least "
                "1, of an axis other than 'clients', which takes the devices that the "
                "other axes leave."
            )
    inner = math.prod(axes.values())
    if not devices or len(devices) % inner:
        given = ", ".join(f"{name}={size}" for name, size in axes.items())
        raise FadError(
            f"fad.distributed.mesh({given}): {len(devices)} devices cannot be split "
            f"into groups of {inner}. Give axes whose sizes multiply to a divisor of "
            "the number of devices."
        )
    grid = np.array(devices).reshape(-1, *axes.values())
    return Mesh(grid, (CLIENTS, *axes))


def local_range(n: int, mesh: Mesh) -> slice:
    """Return the numbers of the clients that this process must load.

    Each position of the mesh's axis ``clients`` holds ``ceil(n / size)`` clients in
    turn; the last ones may hold fewer, or none.

    Args:
        n: The number of clients, of all processes together.
        mesh: A mesh with an axis ``clients``.

    Returns:
        A slice of ``range(n)``, possibly empty.

    Raises:
        FadError: If the mesh has no axis ``clients``, ``n`` is no positive number, or
            this process's devices do not stand together in the mesh.

    Example:
        >>> local_range(10, mesh())
        slice(0, 10, None)
    """
    return process_range("fad.distributed.local_range", n, mesh, jax.process_index())


def process_range(call: str, n: int, mesh: Mesh, process: int) -> slice:
    """Return the clients that ``process`` holds."""
    rows = rows_per_position(call, n, mesh)
    grid = np.moveaxis(mesh.devices, mesh.axis_names.index(CLIENTS), 0)
    owners = [{d.process_index for d in np.ravel(part)} for part in grid]
    mine = [i for i, there in enumerate(owners) if process in there]
    if not mine:
        return slice(n, n)
    first, last = mine[0], mine[-1]
    if mine != list(range(first, last + 1)):
        raise FadError(
            f"{call}: process {process}'s devices stand at the positions {mine} of the "
            "mesh's axis 'clients', not next to each other, so that it would not hold "
            "one block of clients. Use fad.distributed.mesh()."
        )
    return slice(min(n, first * rows), min(n, (last + 1) * rows))


def rows_per_position(call: str, n: int, mesh: Mesh) -> int:
    """Return how many clients each position of the axis ``clients`` holds."""
    if CLIENTS not in mesh.axis_names:
        raise FadError(
            f"{call}: the mesh has the axes {tuple(mesh.axis_names)}, none of which is "
            "'clients'. Use fad.distributed.mesh()."
        )
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise FadError(
            f"{call}: n={n!r}: expected the number of clients of all processes "
            "together, an int of at least 1."
        )
    return -(-int(n) // mesh.shape[CLIENTS])
