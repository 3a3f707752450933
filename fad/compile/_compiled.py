"""The engine that becomes one XLA program: sweeps and rounds are its loops."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad._compat import scan_parts
from fad.compile._execute import execute
from fad.compile._explain import Report, Unstreamed
from fad.compile._flatten import Ref
from fad.compile._mesh import whole
from fad.compile._nodes import Choice, Out, Rows, Sent, leaves, rebuild
from fad.compile._program import Program, Step
from fad.compile._rows import Padded, fill_up
from fad.compile._sinks import Sink
from fad.compile._stack import Ys, is_deferred, iteration
from fad.primitives._client_work import merge, pick, skip


class Compiled:
    """Runs loops as JAX's; ``sweep`` runs client work, on its ``mesh`` if it has one.

    Attributes:
        devices: How many devices share the clients.
        where: The loops around what runs, for the report.
        report: The sweeps, and what could not be streamed, as they are traced.
    """

    def __init__(
        self,
        sweep: Any,
        report: Report,
        devices: int = 1,
    ):
        self._sweep, self.report, self.devices = sweep, report, devices
        self.where: tuple[str, ...] = ()

    def sweep(self, n: int, sinks: Sequence[Sink]) -> list[Any]:
        """Run client work."""
        outs, what = self._sweep(n, sinks, " in ".join(self.where))
        self.report.sweeps.append(what)
        return outs

    def rows(self, array: Any, n: int) -> Any:
        """Return the array, filled up to what the mesh can split."""
        if isinstance(array, Padded):
            return array.array
        return self._filled(array, 0, n)

    def plain(self, array: Any) -> Any:
        """Return the array without what it was filled up with."""
        if not isinstance(array, Padded):
            return array
        return whole(array.clients(), array.axis, self._sweep.mesh)

    def _filled(self, array: Any, axis: int, n: int) -> Any:
        rows = -(-n // self.devices) * self.devices
        if rows == n:
            return array
        return fill_up(whole(array, axis, self._sweep.mesh), rows, axis)

    def unstreamed(self, step: Step) -> None:
        """Note it, with the reason."""
        name = str(step.eqn.eqn.params.get("name") or step.eqn.name)
        note = Unstreamed(name, " in ".join(self.where), step.why)
        self.report.unstreamed.append(note)

    def loop(self, step: Step, args: list[Any]) -> list[Any]:
        """Run a loop."""
        return getattr(self, f"_{step.eqn.name}")(step, args)

    def _inside(self, name: str, program: Program, args: Sequence[Any]) -> list[Any]:
        before, self.where = self.where, (name, *self.where)
        try:
            return execute(program, args, self)
        finally:
            self.where = before

    def _scan(self, step: Step, args: list[Any]) -> list[Any]:
        scan, (body,) = scan_parts(step.eqn.eqn), step.subs
        first_x = scan.num_consts + scan.num_carry
        consts, carry = args[: scan.num_consts], args[scan.num_consts : first_x]
        xs = args[first_x:]
        late = [is_deferred(x) for x in xs]
        arrays = [x.arrays if on else x for x, on in zip(xs, late, strict=True)]
        ys, so_far = Ys(consts, arrays), self.report.mark()

        def one(carry, slices):
            self.report.back_to(so_far)  # JAX may trace a body twice
            slices = [
                s.unstacked(s.array) if isinstance(s, Padded) else s for s in slices
            ]
            made = iter(iteration(pick(late, xs), pick(late, slices)))
            ins = [next(made) if on else s for s, on in zip(slices, late, strict=True)]
            name = f"a scan of {scan.length}"
            outs = self._inside(name, body, [*consts, *carry, *ins])
            new = self._like(carry, outs[: scan.num_carry])
            return new, ys.stack(outs[scan.num_carry :], slices)

        unroll = step.eqn.eqn.params.get("unroll", 1)
        carry, stacks = jax.lax.scan(
            one, self._start(body, carry), arrays, scan.length, scan.reverse, unroll
        )
        return [*carry, *ys.unstack(stacks)]

    def _like(self, old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
        """Give a scan's new carry the form of the old one: clients' state is split."""
        return [
            Padded(self.rows(y, x.n), 0, x.n)
            if isinstance(x, Padded) and x.axis == 0
            else self.plain(y)
            for x, y in zip(old, new, strict=True)
        ]

    def _start(self, body: Program, carry: list[Any]) -> list[Any]:
        """Return a scan's first carry, split over a mesh where clients make it."""
        if self.devices == 1:
            return [self.plain(x) for x in carry]
        ends = body.outputs[: len(carry)]
        return [
            Padded(self.rows(x, end.n), 0, end.n) if end.client and end.n else x
            for x, end in zip(carry, ends, strict=True)
        ]

    def _cond(self, step: Step, args: list[Any]) -> list[Any]:
        index, operands = args[0], args[1:]
        late = [ref.client for ref in step.eqn.outs]
        refs = pick(late, step.eqn.outs)
        made: list[Any] = [None] * len(step.subs)

        def run(k: int) -> tuple[list[Any], list[Any]]:
            outs = self._inside("a cond", step.subs[k], operands)
            lazy = [
                v if is_deferred(v) else Rows(self.rows(v, ref.n))
                for v, ref in zip(pick(late, outs), refs, strict=True)
            ]
            own = leaves(lazy)
            made[k] = lazy, own
            return skip(late, outs), [leaf.array for leaf in own]

        so_far = self.report.mark()
        shapes = [jax.eval_shape(lambda k=k: run(k)) for k in range(len(made))]
        self.report.back_to(so_far)
        forms = [_form(outs) for outs in zip(*(s[0] for s in shapes), strict=True)]

        def branch(k: int) -> Callable[[], tuple[list[Any], list[Any]]]:
            def go():
                outs, own = run(k)
                outs = [self._as(f, v) for f, v in zip(forms, outs, strict=True)]
                return outs, [
                    own if i == k else jax.tree.map(_zeros, other)
                    for i, (_, other) in enumerate(shapes)
                ]

            return go

        branches = [branch(k) for k in range(len(made))]
        outs, arrays = jax.lax.switch(index, branches)
        return merge(late, _chosen(index, refs, made, arrays), outs)

    def _as(self, form: Padded | None, x: Any) -> Any:
        """Return a branch's array in the form that all branches give."""
        if form is None or isinstance(x, Padded):
            return x
        return Padded(self._filled(x, form.axis, form.n), form.axis, form.n)

    def _while(self, step: Step, args: list[Any]) -> list[Any]:
        p, (test, body) = step.eqn.eqn.params, step.subs
        a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        of_test, of_body = args[:a], args[a:b]
        carry = [self.plain(x) for x in args[b:]]

        def go(carry):
            return self._inside("a while loop", test, [*of_test, *carry])[0]

        def one(carry):
            outs = self._inside("a while loop", body, [*of_body, *carry])
            return [self.plain(x) for x in outs]

        return list(jax.lax.while_loop(go, one, carry))


def _form(outs: Sequence[Any]) -> Padded | None:
    return next((x for x in outs if isinstance(x, Padded)), None)


def _zeros(x: Any) -> Any:
    return jnp.zeros(x.shape, x.dtype)


def _chosen(index: Any, refs: list[Ref], made: list[Any], arrays: list[Any]) -> list:
    """Return a cond's client values, to be made from what its branch gave."""
    if not refs:
        return []
    branches = []
    for (lazy, own), found in zip(made, arrays, strict=True):
        new = [type(x)(a) for x, a in zip(own, found, strict=True)]
        memo = {id(x): y for x, y in zip(own, new, strict=True)}
        branches.append(rebuild(lazy, memo))
    avals = [jax.ShapeDtypeStruct(r.aval.shape[1:], r.aval.dtype) for r in refs]
    node = Choice(Sent(index), branches, avals)
    return [Out(node, i) for i in range(len(refs))]
