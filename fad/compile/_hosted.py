"""A program run from the host, its client data read as it runs."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fad._errors import FadError, describe, path_str
from fad.compile._chunk import Policy
from fad.compile._execute import execute
from fad.compile._explain import SweepReport
from fad.compile._host import Host
from fad.compile._pass import trace
from fad.compile._place import place
from fad.compile._reader import Column
from fad.compile._source import ClientStream
from fad.placement import AtClients


@dataclasses.dataclass(frozen=True)
class Static:
    """An argument that the program is compiled for."""

    value: Any


def is_stream(x: Any) -> bool:
    """Say whether an argument is a ``fad.stream``."""
    return isinstance(x, ClientStream)


def flat(args: tuple, kwargs: dict) -> tuple[list[Any], Any]:
    """Return the leaves and the structure of some arguments; a stream is a leaf."""
    return jax.tree.flatten((args, kwargs), is_leaf=is_stream)


def as_clients(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return the types of the arguments, those of all clients in place of streams."""

    def types(x: Any) -> Any:
        if isinstance(x, Static):
            return x.value
        if isinstance(x, jax.Array):  # on whatever mesh: the program runs elsewhere
            weak = getattr(x, "weak_type", False)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)
        if not is_stream(x):
            return x
        tree = jax.tree.unflatten(x.tree, x.types_of_all())
        return AtClients.tree_unflatten(None, (tree,))

    return jax.tree.map(types, (args, kwargs), is_leaf=is_stream)


def mark_static(
    fn: Callable, args: tuple, kwargs: dict, names: str | Iterable[str]
) -> tuple[tuple, dict]:
    """Return the arguments with those of these names as ``Static``."""
    names = {names} if isinstance(names, str) else set(names)
    if not names:
        return args, kwargs
    order = [*inspect.signature(fn).parameters, *[""] * len(args)]
    args = tuple(
        Static(x) if name in names else x for x, name in zip(args, order, strict=False)
    )
    return args, {k: Static(x) if k in names else x for k, x in kwargs.items()}


def as_read(
    sweeps: Sequence[SweepReport],
    args: tuple,
    kwargs: dict,
    policy: Policy,
    devices: int,
) -> tuple[SweepReport, ...]:
    """Return the reports of sweeps with the chunks that they have as data is read."""
    size = min(x.size for x in flat(args, kwargs)[0] if is_stream(x))

    def chunk(s: SweepReport) -> int:
        return policy.pick(-(-min(size, s.clients) // devices), s.estimate)

    return tuple(dataclasses.replace(s, chunk=chunk(s)) for s in sweeps)


class HostProgram:
    """A traced program and the functions compiled for its chunks."""

    def __init__(
        self,
        fn: Callable,
        args: tuple,
        kwargs: dict,
        options: dict[str, Any],
        policy: Policy,
        mesh: Mesh | None,
    ):
        call = f"fad.jit({getattr(fn, '__name__', type(fn).__name__)})"
        _check(call, args, kwargs, options, mesh)
        leaves, tree = jax.tree.flatten(as_clients(args, kwargs))
        static = _static_leaves(args, kwargs)
        arrays = [x for x, on in zip(leaves, static, strict=True) if not on]

        def of(*given):
            rest = iter(given)
            full = [
                x if on else next(rest) for x, on in zip(leaves, static, strict=True)
            ]
            args, kwargs = jax.tree.unflatten(tree, full)
            return fn(*args, **kwargs)

        closed, self._tree = trace(of, arrays)
        self._program = place(closed)
        self._engine = Host(policy, mesh, {})
        self._device = None if mesh is None else mesh.devices.flat[0]

    def __call__(self, args: tuple, kwargs: dict) -> Any:
        """Run the program on arguments of the same types."""
        values: list[Any] = []
        for x in flat(args, kwargs)[0]:
            if is_stream(x):
                values += [Column(x, i) for i in range(len(x.types))]
            elif not isinstance(x, Static):
                values.append(self._at_hand(x))
        outs = execute(self._program, values, self._engine)
        arrays = [self._engine.plain(x) for x in outs]
        return jax.tree.unflatten(self._tree, arrays)

    def _at_hand(self, x: Any) -> jax.Array:
        """Return an argument on the device where the server works."""
        x = jnp.asarray(x)
        return x if self._device is None else jax.device_put(x, self._device)


def _static_leaves(args: tuple, kwargs: dict) -> list[bool]:
    """Say which leaves of the arguments, streams in full, are static."""
    marked: list[bool] = []
    for x in flat(args, kwargs)[0]:
        if is_stream(x):
            marked += [False] * len(x.types)
        elif isinstance(x, Static):
            marked += [True] * len(jax.tree.leaves(x.value))
        else:
            marked.append(False)
    return marked


def _check(
    call: str, args: tuple, kwargs: dict, options: dict[str, Any], mesh: Mesh | None
) -> None:
    if options["donate_argnums"]:
        raise FadError(
            f"{call}: donate_argnums={options['donate_argnums']} cannot be used with a "
            "fad.stream: the rounds run from the host. Leave it out."
        )
    if mesh is not None and mesh.is_multi_process:
        raise FadError(
            f"{call}: the mesh has devices of {jax.process_count()} processes, but a "
            "fad.stream is read by one. Use a mesh of jax.local_devices(), or pass the "
            "data of each process as fad.distributed.clients."
        )
    for root, tree in (("args", args), ("kwargs", kwargs)):
        named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_stream)
        for path, x in named:
            known = is_stream(x) or isinstance(x, Static) or _dynamic(x)
            if not known:
                raise FadError(
                    f"{call}: {path_str(root, path)} is {describe(x)}; expected "
                    "arrays. Name the parameter in static_argnames."
                )


def _dynamic(x: Any) -> bool:
    is_array = hasattr(x, "shape") and hasattr(x, "dtype")
    return is_array or isinstance(x, bool | int | float | complex)
