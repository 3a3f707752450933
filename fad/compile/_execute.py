"""Running a placed program: server work as it is, client work in sweeps.

``Engine`` says how a sweep and a loop run: compiled into one XLA program, or from the
host with data that is read chunk by chunk.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fad._compat import bind, scan_parts
from fad.compile._flatten import Ref, shape_of
from fad.compile._nodes import Out, Rows, Sent, Work
from fad.compile._program import Program, Step
from fad.compile._sinks import Placed, Sink, Sum
from fad.compile._sinks import Rows as AllRows


class Engine(Protocol):
    """How sweeps and loops run."""

    def sweep(self, n: int, sinks: Sequence[Sink]) -> list[Any]:
        """Run client work over ``n`` clients and return what the sinks ask for."""
        ...

    def loop(self, step: Step, args: list[Any]) -> list[Any]:
        """Run a scan, cond or while that communicates."""
        ...

    def rows(self, array: Any, n: int) -> Any:
        """Return an array ``[n, *s]`` in the form in which sweeps read it."""
        ...

    def plain(self, array: Any) -> Any:
        """Undo ``rows``."""
        ...

    def unstreamed(self, step: Step) -> None:
        """Note a federated equation that runs over all clients at once."""
        ...


def execute(program: Program, args: Sequence[Any], engine: Engine) -> list[Any]:
    """Run a program on arrays and client values.

    Returns:
        Arrays, maybe filled up (``Padded``); client values where the program was placed
        with ``defer``.
    """
    return _Run(program, args, engine).outputs()


class _Run:
    def __init__(self, program: Program, args: Sequence[Any], engine: Engine):
        self.program, self.engine = program, engine
        self.env: dict[int, Any] = {
            id(ref): x for ref, x in zip(program.inputs, args, strict=True)
        }
        self.leaves: dict[int, Rows] = {}

    def outputs(self) -> list[Any]:
        steps, program = self.program.steps, self.program
        for level in range(program.levels):
            now = [s for s in steps if s.level == level]
            for step in now:
                if step.kind != "sum":
                    self.step(step)
            self.sweep(level, [s for s in now if s.kind == "sum"])
        return [
            self.value(ref) if late else self.stored(ref)
            for ref, late in zip(program.outputs, program.late, strict=True)
        ]

    # ---- values --------------------------------------------------------------------

    def value(self, ref: Ref) -> Any:
        return self.env[id(ref)] if ref.value is None else ref.value

    def stored(self, ref: Ref) -> Any:
        """Return an array, maybe filled up; what all clients share is repeated."""
        value = self.value(ref)
        if isinstance(value, Sent):
            return jnp.broadcast_to(value.array, shape_of(ref))
        return value

    def plain(self, ref: Ref) -> Any:
        """Return an array."""
        return self.engine.plain(self.stored(ref))

    def client(self, ref: Ref, n: int) -> Any:
        """Return a client value; an array's rows are the clients', a scalar is sent."""
        value = self.value(ref)
        if isinstance(value, Sent | Rows | Out):
            return value
        if shape_of(ref) == ():
            return Sent(value)
        if id(ref) not in self.leaves:
            self.leaves[id(ref)] = Rows(self.engine.rows(value, n))
        return self.leaves[id(ref)]

    # ---- steps ---------------------------------------------------------------------

    def step(self, step: Step) -> None:
        outs = getattr(self, f"_{step.kind}")(step)
        for ref, value in zip(step.eqn.outs, outs, strict=True):
            self.env[id(ref)] = value

    def _send(self, step: Step) -> list[Any]:
        return [Sent(self.plain(step.eqn.ins[0]))]

    def _fill(self, step: Step) -> list[Any]:
        shape = shape_of(step.eqn.outs[0])[1:]
        return [Sent(jnp.broadcast_to(self.plain(step.eqn.ins[0]), shape))]

    def _map(self, step: Step) -> list[Any]:
        params = step.eqn.eqn.params
        ins = [self.client(ref, step.n) for ref in step.eqn.ins]
        node = Work(ins, params["name"], jaxpr=params["jaxpr"])
        return [Out(node, i) for i in range(len(step.eqn.outs))]

    def _row(self, step: Step) -> list[Any]:
        ins = [self.client(ref, step.n) for ref in step.eqn.ins]
        if all(isinstance(v, Sent) for v in ins):
            return [Sent(step.work(*(v.array for v in ins)))]
        return [Out(Work(ins, step.eqn.name, fn=step.work), 0)]

    def _select(self, step: Step) -> list[Any]:
        """Let each client take its slices, of one copy of what the server has."""
        x, *refs = step.eqn.ins
        keys = [self.client(ref, step.n) for ref in refs]
        whole = self.plain(x)
        if all(isinstance(k, Sent) for k in keys):
            return [Sent(step.work(whole, *(k.array for k in keys)))]
        return [Out(Work([Sent(whole), *keys], step.eqn.name, fn=step.work), 0)]

    def _barrier(self, step: Step) -> list[Any]:
        values = [self.value(ref) for ref in step.eqn.ins]
        lazy = [not isinstance(v, jax.Array | np.ndarray) for v in values]
        plain = [v for v, on in zip(values, lazy, strict=True) if not on]
        held = iter(jax.lax.optimization_barrier(plain) if plain else [])
        return [v if on else next(held) for v, on in zip(values, lazy, strict=True)]

    def _server(self, step: Step) -> list[Any]:
        if step.why:
            self.engine.unstreamed(step)
        return bind(step.eqn.eqn, [self.plain(ref) for ref in step.eqn.ins])

    def _loop(self, step: Step) -> list[Any]:
        eqn, fixed = step.eqn, len(step.eqn.ins)  # what is read as it is, in one piece
        if eqn.name == "scan":
            fixed = scan_parts(eqn.eqn).num_consts
        elif eqn.name == "while":
            params = eqn.eqn.params
            fixed = params["cond_nconsts"] + params["body_nconsts"]
        args = [self.value(ref) for ref in eqn.ins[:fixed]]
        return self.engine.loop(step, args + [self.stored(r) for r in eqn.ins[fixed:]])

    # ---- sweeps --------------------------------------------------------------------

    def sweep(self, level: int, sums: list[Step]) -> None:
        """Run all that the clients do in this phase, once per number of clients."""
        todo: dict[int, list[tuple[Ref, Sink]]] = {}
        for step in sums:
            todo.setdefault(step.n, []).append((step.eqn.outs[0], self.sink(step)))
        for ref in self.program.kept:
            if ref.level == level and isinstance(self.value(ref), Out):
                sink = AllRows([self.value(ref)], ref.aval)
                todo.setdefault(ref.n, []).append((ref, sink))
        for n, pairs in todo.items():
            results = self.engine.sweep(n, [sink for _, sink in pairs])
            for (ref, _), result in zip(pairs, results, strict=True):
                self.env[id(ref)] = result

    def sink(self, step: Step) -> Sink:
        """Return what a sum, or a deselect, is to give."""
        values = [self.client(ref, step.n) for ref in step.eqn.ins]
        aval = step.eqn.outs[0].aval
        if step.eqn.name == "fad_deselect":
            return Placed(values, aval, step.eqn.eqn.params["axes"])
        return Sum(values, aval, step.eqn.ins[0].aval.dtype)
