"""Laying a program's arguments out on a mesh, the same in all processes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from fad._errors import FadError, describe
from fad.compile._mesh import put
from fad.compile._rows import Padded
from fad.distributed import ShardedClients, check_agreement
from fad.placement import CLIENTS, AtClients
from fad.plan._check_axes import FindAxes, leaves_of, named_arguments


def is_padded(x: Any) -> bool:
    """Say whether an array is filled up."""
    return isinstance(x, Padded)


def is_array(x: Any) -> bool:
    """Say whether ``x`` has a shape and a dtype."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def unwrap(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return the arguments with ``AtClients`` in place of ``ShardedClients``."""

    def at_clients(x: Any) -> Any:
        if not isinstance(x, ShardedClients):
            return x
        n = x.num_clients
        tree = jax.tree.map(lambda a: a if a.shape[0] == n else Padded(a, 0, n), x.tree)
        return AtClients.tree_unflatten(None, (tree,))

    return jax.tree.map(
        at_clients, (args, kwargs), is_leaf=lambda x: isinstance(x, ShardedClients)
    )


def check_unsplit(call: str, args: tuple, kwargs: dict) -> None:
    """Refuse clients that are split over devices where no mesh was given.

    A loop over a split axis would gather every client's data onto every device.

    Raises:
        FadError: Naming the argument.
    """
    for x in jax.tree.leaves((args, kwargs)):
        sharding = getattr(x, "sharding", None)
        if not isinstance(sharding, NamedSharding) or CLIENTS not in sharding.spec:
            continue
        if sharding.mesh.shape[CLIENTS] > 1:
            raise FadError(
                f"{call}: an argument, {describe(x)}, is split over the mesh axis "
                f"{CLIENTS!r}, and fad.jit was given no mesh. Pass it: fad.jit(f, "
                "mesh=mesh), so that each device runs its own clients."
            )


def check_same_call(call: str, fn: Callable, args: tuple, kwargs: dict) -> None:
    """Raise in all processes if this call's arguments differ from another's.

    At every call: one process may know the shapes that another sees for the first time.
    """
    if jax.process_count() == 1:
        return
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_padded)
    leaves = [x.struct() if is_padded(x) else x for x in leaves]
    args, kwargs = jax.tree.unflatten(tree, leaves)
    named = named_arguments(fn, args, kwargs)
    found = [leaf for root, arg in named for leaf in leaves_of(root, arg)]
    check_agreement(call, [(leaf.path, describe(leaf.aval)) for leaf in found])


def lay_out(
    call: str, fn: Callable, args: tuple, kwargs: dict, mesh: Mesh
) -> Callable[[tuple, dict], tuple[tuple, dict]]:
    """Return what puts arguments like these on the mesh.

    Client arrays are split along their client axis, wherever it stands (a cohort per
    round has it second); everything else is the server's and goes to every device.

    Raises:
        FadError: In all processes, if they disagree about the program.
    """
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_padded)
    leaves = [x.struct() if is_padded(x) else x for x in leaves]
    dynamic = [is_array(x) for x in leaves]

    def of(*arrays):
        rest = iter(arrays)
        full = [next(rest) if on else x for x, on in zip(leaves, dynamic, strict=True)]
        args, kwargs = jax.tree.unflatten(tree, full)
        return fn(*args, **kwargs)

    arrays = [x for x, on in zip(leaves, dynamic, strict=True) if on]
    closed = jax.make_jaxpr(of)(*arrays)
    args, kwargs = jax.tree.unflatten(tree, leaves)
    named = [
        leaf
        for root, arg in named_arguments(fn, args, kwargs)
        for leaf in leaves_of(root, arg)
    ]
    if jax.process_count() > 1:
        said = [(leaf.path, describe(leaf.aval)) for leaf in named]
        check_agreement(call, said, str(closed))
    find = FindAxes([leaf for leaf, on in zip(named, dynamic, strict=True) if on])
    find.run(closed, find.values)
    axes = iter([tuple(find.axes(i)) for i in range(len(arrays))])
    places = [next(axes) if on else None for on in dynamic]

    def apply(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_padded)
        laid = [
            x if at is None or is_padded(x) else put(x, mesh, at)
            for x, at in zip(leaves, places, strict=True)
        ]
        return jax.tree.unflatten(tree, laid)

    return apply
