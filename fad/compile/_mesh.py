"""Sweeps over a mesh: each device runs its clients, then the sums are added up.

The chunked loop stands inside ``shard_map``: a loop over a sharded axis under automatic
sharding would gather every client's data onto every device.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fad._errors import FadError
from fad.compile._nodes import OneClient
from fad.compile._pull import Pulled
from fad.compile._rows import Padded, fill_up
from fad.compile._sinks import Sink
from fad.compile._sweep import run_sweep
from fad.placement import CLIENTS


def check_mesh(call: str, mesh: Any) -> Mesh | None:
    """Return the mesh with automatic axes, as sweeps need it.

    Raises:
        FadError: If it is no mesh, or has no axis named ``clients``.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise FadError(
            f"{call}: mesh={mesh!r} is no jax.sharding.Mesh. Make one with "
            'jax.make_mesh((devices,), ("clients",)).'
        )
    if CLIENTS not in mesh.axis_names:
        sizes = ", ".join(f"{k!r}: {v}" for k, v in mesh.shape.items())
        raise FadError(
            f"{call}: the mesh has the axes {{{sizes}}}, none of which is named "
            f"{CLIENTS!r}; expected one, over which clients are split. Name it so in "
            "jax.make_mesh."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def mesh_sweep(
    mesh: Mesh, client: OneClient, sinks: Sequence[Sink], n: int, chunk: int
) -> tuple[list[Any], Pulled]:
    """Run client work with the clients split over the mesh's ``clients`` axis."""
    sent, rows = [x.array for x in client.sent], [x.array for x in client.rows]
    size = -(-n // mesh.shape[CLIENTS]) * mesh.shape[CLIENTS]
    valid = n if size != n else None
    outs, pulled = chunk_on_mesh(
        mesh, client, sinks, sent, rows, n=size, chunk=chunk, valid=valid
    )
    found = [
        Padded(y, 0, n) if s.rows and size != n else y
        for s, y in zip(sinks, outs, strict=True)
    ]
    return found, pulled


def chunk_on_mesh(
    mesh: Mesh,
    client: OneClient,
    sinks: Sequence[Sink],
    sent: Sequence[Any],
    rows: Sequence[Any],
    *,
    n: int,
    chunk: int,
    valid: Any,
) -> tuple[list[Any], Pulled]:
    """Run client work over ``n`` rows, which devices divide; ``valid`` of them count.

    Returns:
        As ``run_sweep``.
    """
    per = n // mesh.shape[CLIENTS]
    pulled = []

    def on_device(sent, rows, valid):
        if valid is not None:
            valid = valid - jax.lax.axis_index(CLIENTS) * per
        outs, what = run_sweep(
            client, sinks, sent, rows, n=per, chunk=min(chunk, per), valid=valid
        )
        pulled.append(what)
        return [
            y if s.rows else jax.lax.psum(y, CLIENTS)
            for s, y in zip(sinks, outs, strict=True)
        ]

    run = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(CLIENTS), PartitionSpec()),
        out_specs=[
            PartitionSpec(CLIENTS) if s.rows else PartitionSpec() for s in sinks
        ],
        axis_names={CLIENTS},
        check_vma=False,
    )
    return run(list(sent), list(rows), valid), pulled[-1]


def put(x: Any, mesh: Mesh, axes: Sequence[int]) -> Any:
    """Lay an argument out on the mesh: clients split, the server's values everywhere.

    Args:
        x: An array.
        mesh: The mesh.
        axes: Its client axis, if any.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        # device_put knows no keys over several processes.
        laid = put(jax.random.key_data(x), mesh, axes)
        wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(x))
        return jax.tree.map(wrap, laid)
    if not axes:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    axis, n, devices = axes[0], x.shape[axes[0]], mesh.shape[CLIENTS]
    rows = -(-n // devices) * devices
    split = NamedSharding(mesh, PartitionSpec(*[None] * axis, CLIENTS))
    array = jax.device_put(fill_up(x, rows, axis), split)
    return array if rows == n else Padded(array, axis, n)


def whole(x: Any, axis: int, mesh: Mesh | None) -> Any:
    """Keep an array whose ``axis`` the mesh does not divide in one piece along it.

    XLA would split it unevenly, and its partitioner cannot do that for a scatter.
    """
    if mesh is None:
        return x
    free = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(*[None if i == axis else free for i in range(x.ndim)])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
