"""The one place that knows JAX's semi-public interface.

Everything that fad imports from ``jax.extend``, ``jax.interpreters`` and ``jax.core``
stands here, so that a new JAX release is met by reading one file. It works on JAX 0.10
to 0.12 with one code path.
"""

import contextlib
import functools
import itertools
import linecache
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import ShapedArray as ShapedArray
from jax.core import Tracer as Tracer
from jax.core import eval_jaxpr as eval_jaxpr
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import JaxprEqn as JaxprEqn
from jax.extend.core import Literal as Literal
from jax.extend.core import Primitive as Primitive
from jax.extend.core import Var as Var
from jax.extend.core import jaxpr_as_fun as jaxpr_as_fun
from jax.extend.core import jaxprs_in_params as jaxprs_in_params
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from jax.interpreters import mlir as mlir
from jax.interpreters import partial_eval as pe
from jax.sharding import NamedSharding, PartitionSpec

# Call-like primitives whose one inner jaxpr has the equation's own inputs and outputs,
# under the names they have had between JAX 0.10 and 0.12.
_CALLS = frozenset(
    {
        "jit",
        "pjit",
        "checkpoint",
        "remat",
        "remat2",
        "closed_call",
        "custom_jvp_call",
        "eval_jaxpr",  # a checkpoint inside a checkpoint
    }
)
# Frames of a traceback that are not the user's: JAX, fad, and wrappers in between.
_NOT_THE_USERS = (
    *(os.path.dirname(f) + os.sep for f in (jax.__file__, __file__)),
    *(m.__file__ for m in (contextlib, functools) if m.__file__),
)


def is_tracer(x: Any) -> bool:
    """Say whether ``x`` stands for a value in a trace."""
    return isinstance(x, Tracer)


def shape_struct(aval: ShapedArray) -> jax.ShapeDtypeStruct:
    """Return ``aval`` as public JAX's shape; on the mesh in context if it is Explicit.

    A value that never met the mesh has no sharding; batching over an Explicit mesh axis
    needs one, even if it says that nothing is split.
    """
    sharding, mesh = aval.sharding, jax.sharding.get_abstract_mesh()
    if sharding.mesh.empty:
        explicit = jax.sharding.AxisType.Explicit in mesh.axis_types
        sharding = NamedSharding(mesh, PartitionSpec()) if explicit else None
    return jax.ShapeDtypeStruct(
        aval.shape, aval.dtype, weak_type=aval.weak_type, sharding=sharding
    )


def make_jaxpr(fn: Callable, avals: Sequence[ShapedArray]) -> ClosedJaxpr:
    """Trace ``fn`` at ``avals``, weak types and shardings included.

    JAX 0.12 traces some functions (``jnp.nonzero``) to primitives of a higher level,
    which no primitive around them may hold; it has them lowered.
    """
    closed = jax.make_jaxpr(fn)(*map(shape_struct, avals))
    if not getattr(closed.jaxpr, "is_high", False):
        return closed
    return pe.lower_jaxpr2(closed)  # type: ignore


def hoist_constants(closed: ClosedJaxpr) -> tuple[ClosedJaxpr, list[Any]]:
    """Turn what a traced function closed over into leading inputs."""
    if not closed.consts:
        return closed, []
    jaxpr, count = closed.jaxpr, len(closed.consts)
    avals = [v.aval for v in (*jaxpr.constvars, *jaxpr.invars)]
    hoisted = make_jaxpr(
        lambda *args: eval_jaxpr(jaxpr, args[:count], *args[count:]), avals
    )
    return hoisted, list(closed.consts)


def dce(
    closed: ClosedJaxpr, used_outputs: Sequence[bool], *, keep_inputs: bool = False
) -> tuple[ClosedJaxpr, list[bool]]:
    """Drop unused outputs and the work only they need; say which inputs remain."""
    jaxpr, used = pe.dce_jaxpr(closed.jaxpr, list(used_outputs), keep_inputs)
    return ClosedJaxpr(jaxpr, closed.consts), list(used)


def register_dce(primitive: Primitive, rule: Callable) -> None:
    """Register ``rule(used_outputs, eqn) -> (used_inputs, eqn or None)``.

    JAX 0.11 put the liveness of the inputs between the two arguments.
    """
    pe.dce_rules[primitive] = lambda used, *rest: rule(used, rest[-1])


def inner_call(eqn: JaxprEqn) -> Jaxpr | None:
    """Return the inner jaxpr of a call with the equation's own signature, if any."""
    if eqn.primitive.name not in _CALLS and eqn.primitive.name != "fad_map":
        return None
    inner = list(jaxprs_in_params(eqn.params))
    if len(inner) != 1:
        return None
    same = len(inner[0].invars) == len(eqn.invars)
    return inner[0] if same and len(inner[0].outvars) == len(eqn.outvars) else None


def depends_on(jaxpr: Jaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Say which outputs depend on the marked inputs; never says no wrongly."""
    marked = {v for v, on in zip(jaxpr.invars, inputs, strict=True) if on}

    def is_marked(atom: Any) -> bool:
        return isinstance(atom, Var) and atom in marked

    for eqn in jaxpr.eqns:
        ins = [is_marked(v) for v in eqn.invars]
        if not any(ins):
            continue
        inner = inner_call(eqn)
        outs = depends_on(inner, ins) if inner else [True] * len(eqn.outvars)
        marked.update(v for v, on in zip(eqn.outvars, outs, strict=True) if on)
    return [is_marked(v) for v in jaxpr.outvars]


def bind(eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Run one equation of a jaxpr on these values."""
    out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


class Scan(NamedTuple):
    """What a scan equation says, whatever its parameters are called."""

    body: ClosedJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool


def scan_parts(eqn: JaxprEqn) -> Scan:
    """Read a scan equation: JAX 0.11 replaced its counts by flat trees."""
    p = eqn.params
    if "num_consts" in p:
        consts, carry = p["num_consts"], p["num_carry"]
    else:
        consts, carry, _ = (len(list(part.vals)) for part in p["ft_in"].unpack())
    return Scan(p["jaxpr"], consts, carry, p["length"], p["reverse"])


def linear_solve(eqn: JaxprEqn, operands: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return what a custom_linear_solve runs, its solver, and on which operands.

    Its matrices are what the solver calls, so they stand inside.
    """
    lengths, b = eqn.params["const_lengths"], sum(eqn.params["const_lengths"])
    start = lengths.matvec + lengths.vecmat
    consts = operands[start : start + lengths.solve]
    return eqn.params["jaxprs"].solve, [*consts, *operands[b:]]


def run_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """Return the jaxprs inside an equation, without those that it does not run."""
    if eqn.primitive.name == "custom_linear_solve":
        return [open_jaxpr(eqn.params["jaxprs"].solve)[0]]
    return list(jaxprs_in_params(eqn.params))


def open_jaxpr(jaxpr: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """Return a jaxpr and its constants, whether it came closed or open."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def explicit_axis(name: str) -> bool:
    """Say whether the mesh in context has an Explicit axis of this name."""
    return _axis_type(name) == jax.sharding.AxisType.Explicit


def auto_axis(name: str) -> bool:
    """Say whether the mesh in context has an Auto axis of this name."""
    return _axis_type(name) == jax.sharding.AxisType.Auto


def _axis_type(name: str) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(name)


def on_explicit_mesh(tree: Any) -> Any:
    """Put arrays that never met the mesh in context on it, if that is Explicit."""
    mesh = jax.sharding.get_abstract_mesh()
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return tree

    def place(x):
        known = not isinstance(x, jax.Array) or not jax.typeof(x).sharding.mesh.empty
        return x if known else jax.sharding.reshard(x, PartitionSpec())

    return jax.tree.map(place, tree)


def mesh_axis(name: str, clients: int) -> str | None:
    """Return ``name`` if the mesh in context can split ``clients`` over that axis."""
    size = dict(jax.sharding.get_abstract_mesh().shape).get(name)
    return name if size is not None and clients % size == 0 else None


def spec_of(aval: ShapedArray) -> tuple[Any, ...]:
    """Return the partition spec of an aval, one entry per dimension."""
    spec = tuple(aval.sharding.spec)
    return spec + (None,) * (aval.ndim - len(spec))


def add_leading(aval: ShapedArray, size: int, axis: str | None) -> ShapedArray:
    """Return ``aval`` with a leading dimension, split over the mesh axis ``axis``."""
    shape = (size, *aval.shape)
    lead = axis if axis is not None and explicit_axis(axis) else None
    mesh = aval.sharding.mesh
    if mesh.empty and lead is not None:
        mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return aval.update(shape=shape, sharding=None)
    spec = PartitionSpec(lead, *spec_of(aval))
    return aval.update(shape=shape, sharding=NamedSharding(mesh, spec))


def drop_leading(aval: ShapedArray) -> ShapedArray:
    """Return ``aval`` without its leading dimension."""
    if aval.sharding.mesh.empty:
        return aval.update(shape=aval.shape[1:], sharding=None)
    spec = PartitionSpec(*spec_of(aval)[1:])
    sharding = NamedSharding(aval.sharding.mesh, spec)
    return aval.update(shape=aval.shape[1:], sharding=sharding)


def call_body(eqn: JaxprEqn) -> Any:
    """Return the inner jaxpr, with its constants, of a call that runs it as it is."""
    name = eqn.primitive.name
    if name not in _CALLS and not name.startswith("custom_vjp_call"):
        return None
    p = eqn.params
    return next((p[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in p), None)


def user_line(eqns: Iterable[JaxprEqn], *, short: bool = False) -> str:
    """Return the user's line that made an equation: the innermost outside JAX and fad.

    Args:
        eqns: The equation, then those around it: JAX does not record who called what it
            traced before.
        short: Give the place alone, not the line's text.
    """
    for frame in itertools.chain.from_iterable(map(_frames, eqns)):
        path, number, function = frame.file_name, frame.line_num, frame.function_name
        if path.startswith(_NOT_THE_USERS):
            continue
        if short:
            return f"{os.path.basename(path)}:{number} in {function}"
        text = linecache.getline(path, number).strip()
        return f"{path}:{number}, in {function}: {text}".removesuffix(": ")
    return "a line that JAX did not record"


def _frames(eqn: JaxprEqn) -> Sequence[Any]:
    traceback = eqn.source_info.traceback
    return () if traceback is None else traceback.frames
