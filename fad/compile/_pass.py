"""The pass as a whole: a function, its arguments' types, and a policy."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fad._compat import ClosedJaxpr, dce, is_tracer
from fad._errors import FadError
from fad.compile._chunk import Policy
from fad.compile._compiled import Compiled
from fad.compile._estimate import Estimate, estimate
from fad.compile._execute import execute
from fad.compile._explain import Report, SweepReport
from fad.compile._mesh import mesh_sweep
from fad.compile._nodes import OneClient
from fad.compile._place import place
from fad.compile._rows import Padded
from fad.compile._sinks import Sink
from fad.compile._sweep import run_sweep
from fad.placement import CLIENTS


def trace(fn: Callable, leaves: Sequence[Any]) -> tuple[ClosedJaxpr, Any]:
    """Return ``fn``'s jaxpr, without what no output needs, and its outputs' tree."""
    args = [_unpadded(x) for x in leaves]
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    closed, _ = dce(closed, [True] * len(closed.out_avals), keep_inputs=True)
    return closed, jax.tree.structure(shapes)


def _unpadded(x: Any) -> Any:
    """Return the type that the program sees: no filling up, no mesh."""
    if isinstance(x, Padded):
        return x.struct()
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    aval = jax.typeof(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def stream(
    fn: Callable,
    leaves: Sequence[Any],
    *,
    policy: Policy,
    mesh: Mesh | None,
    report: Report,
) -> Any:
    """Run ``fn`` on arrays, client work in sweeps; inside a trace of ``jax.jit``."""
    closed, tree = trace(fn, leaves)
    if any(map(is_tracer, closed.consts)):
        if mesh is None:
            return fn(*leaves)  # closes over a trace that may differentiate it
        raise FadError(
            "fad.jit(..., mesh=mesh): the function closes over a value of the trace "
            "around it. Pass that value as an argument."
        )
    outs = run(closed, leaves, policy=policy, mesh=mesh, report=report)
    return jax.tree.unflatten(tree, outs)


def run(
    closed: ClosedJaxpr,
    leaves: Sequence[Any],
    *,
    policy: Policy,
    mesh: Mesh | None,
    report: Report,
) -> list[Any]:
    """Run a traced program on arrays, client work in sweeps."""
    devices = 1 if mesh is None else mesh.shape[CLIENTS]
    engine = Compiled(_Sweeps(policy, mesh), report, devices)
    outs = execute(place(closed), leaves, engine)
    return [engine.plain(x) for x in outs]


class _Sweeps:
    """Runs sweeps with the policy's chunks, and reports them."""

    def __init__(self, policy: Policy, mesh: Mesh | None):
        self.policy, self.mesh = policy, mesh
        self.known: dict[Any, Estimate] = {}

    def estimate(self, client: OneClient, sinks: Sequence[Sink]) -> Estimate:
        """Estimate the work; rounds that look alike are estimated once."""
        leaves = [jax.typeof(x.array) for x in (*client.sent, *client.rows)]
        wanted = [(s.key(), s.aval) for s in sinks]
        key = str((client.names, client.equations, leaves, wanted))
        if key not in self.known:
            self.known[key] = estimate(client, sinks)
        return self.known[key]

    def __call__(
        self, n: int, sinks: Sequence[Sink], where: str
    ) -> tuple[list[Any], SweepReport]:
        client = OneClient([v for sink in sinks for v in sink.values])
        cost = self.estimate(client, sinks) if self.policy.estimates else None
        devices = 1 if self.mesh is None else self.mesh.shape[CLIENTS]
        chunk = self.policy.pick(-(-n // devices), cost)
        if self.mesh is None:
            sent = [x.array for x in client.sent]
            rows = [x.array for x in client.rows]
            outs, pulled = run_sweep(client, sinks, sent, rows, n=n, chunk=chunk)
        else:
            outs, pulled = mesh_sweep(self.mesh, client, sinks, n, chunk)
        what = SweepReport(
            clients=n,
            chunk=chunk,
            work=tuple(client.names),
            where=where,
            sums=sum(not s.rows for s in sinks),
            stored=sum(s.rows for s in sinks),
            products=pulled.products,
            estimate=cost,
        )
        outs = [y if s.rows else s.result(y) for s, y in zip(sinks, outs, strict=True)]
        return outs, what
