"""``fad.check``: does a client value reach the server otherwise than through a sum?"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fad._compat import (
    ClosedJaxpr,
    JaxprEqn,
    Literal,
    ShapedArray,
    dce,
    user_line,
)
from fad._errors import FadError, PlacementError, PlanError, describe
from fad.plan._check_axes import FindAxes, Leaf, leaves_of, named_arguments
from fad.plan._check_values import Placed
from fad.plan._check_walk import Walk
from fad.plan._check_why import instead, reason
from fad.plan._report import Aggregate, Allowed, CheckReport, Output, Received
from fad.plan._types import aval_of, one_of, type_text

_ALLOW = ("callback", "decode", "keys", "unsafe_gather")


def check(
    fn: Callable, *, allow: str | Sequence[str] = ()
) -> Callable[..., CheckReport]:
    """Prove that what clients hold reaches the server through ``fad.sum`` alone.

    The traced program is followed equation by equation. A client value may be changed
    in place by each client (elementwise arithmetic, transposes that keep the client
    axis); whatever else takes the client axis away is refused, at the first equation:
    indexing it, reducing over it, ``unsafe_gather`` and arithmetic on what it gives,
    callbacks, closing a map over client values, returning them unmarked. Equations that
    fad does not know are refused on client values. A static slice of the client axis is
    a smaller cohort, of at least two clients, whose values join none of other clients.
    Nothing is compiled or run, and what no output needs is not looked at.

    It is about who computes with what, not about how much a sum tells: a sum with a
    weight for one client alone passes, and so do slices (``fad.deselect``) of which a
    coordinate is one client's alone, runs that overlap but for one client, and what
    ``wire=()`` and ``public=True`` declare.

    A program that passes, passes for its derivatives in every mode: they hold the same
    equations (FAD's closure).

    Args:
        fn: A fad program, or a function of JAX made of programs.
        allow: What is reported instead of refused: ``"callback"`` (clients' values go
            to Python or to another device), ``"decode"`` (the server decodes what each
            client sends, ``fad.sum(..., wire=...)``), ``"keys"`` (each client says
            which slices it wants, ``fad.select``), ``"unsafe_gather"`` (any other use
            of client values at the server).

    Returns:
        A function of ``fn``'s arguments, arrays or ``jax.ShapeDtypeStruct``, that gives
        the ``CheckReport``.

    Raises:
        FadError: If ``allow`` names something else.
        PlacementError: When called, naming the equation, the source line and the value.
        PlanError: When called, if the function has neither a client value nor a
            federated primitive.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def loss(w, data):
        ...     return fad.mean(fad.map(lambda x: (w * x) ** 2, data))
        >>> data = fad.AtClients(jnp.ones(8))
        >>> report = fad.check(jax.grad(loss))(1.0, data)
        >>> [(o.path, o.where, len(o.depends)) for o in report.outputs]
        [('output', 'server', 1)]

    References:
        Rush et al., Federated Automatic Differentiation, JMLR 25, 2024 (closure).
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    allowed = {allow} if isinstance(allow, str) else set(allow)
    if unknown := sorted(map(str, allowed.difference(_ALLOW))):
        raise FadError(
            f"fad.check({name}, allow=...): unknown {', '.join(map(repr, unknown))}; "
            f"expected some of {', '.join(map(repr, _ALLOW))}."
        )

    def checked(*args: Any, **kwargs: Any) -> CheckReport:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        closed, _ = dce(closed, [True] * len(closed.out_avals), keep_inputs=True)
        leaves = [
            leaf
            for root, arg in named_arguments(fn, args, kwargs)
            for leaf in leaves_of(root, arg)
        ]
        find = FindAxes(leaves)
        find.run(closed, find.values)
        checker = _Checker(name, allowed, find)
        return checker.report(closed, leaves, leaves_of("output", shapes))

    return checked


class _Checker(Walk):
    """Raise at the first leak; note what goes down and what comes up."""

    def __init__(self, name: str, allow: set[str], find: FindAxes):
        super().__init__()
        self._call, self._name = f"fad.check({name})", name
        self._allow, self._find = allow, find
        self._learns: dict[Received, None] = {}
        self._reveals: dict[int, Aggregate] = {}
        self._allowed: dict[Allowed, None] = {}

    def report(
        self, closed: ClosedJaxpr, inputs: list[Leaf], outputs: list[Leaf]
    ) -> CheckReport:
        """Check a program and say what there is to say."""
        consts = {i: self._find.axes(f"const {i}") for i in self._find.consts}
        named = any(leaf.levels for leaf in [*inputs, *outputs]) or any(consts.values())
        if not (self._find.federated or named):
            raise PlanError(
                f"{self._call}: no argument is AtClients and the function holds no "
                "federated primitive (fad.broadcast, fad.map, fad.sum), so there is "
                "nothing to check. Pass client data as an argument, fad.AtClients(...)."
            )
        values = [
            Placed(self._find.axes(i), maker=leaf.path) for i, leaf in enumerate(inputs)
        ]
        found = zip(
            outputs, self.run(closed, values), closed.jaxpr.outvars, strict=True
        )
        placed = tuple(self._output(*each) for each in found)
        return CheckReport(
            name=self._name,
            outputs=placed,
            learns=tuple(self._learns),
            reveals=tuple(self._reveals.values()),
            allowed=tuple(self._allowed),
            constants=tuple(
                describe(self._find.consts[i]) for i, axes in consts.items() if not axes
            ),
        )

    def _output(self, leaf: Leaf, value: Placed, atom: Any) -> Output:
        allowed = ()
        if value.axes and not leaf.levels:
            allowed = (self._returned(leaf, value),)
        sums = [d for d in value.depends if isinstance(d, Aggregate)]
        others = [d for d in value.depends if isinstance(d, Allowed)]
        return Output(
            leaf.path,
            type_text(atom.aval),
            "clients" if leaf.levels else "server",
            tuple(sorted(value.axes)) if leaf.levels else (),
            tuple(sorted(sums, key=lambda s: s.number)),
            (*sorted(others, key=str), *allowed),
        )

    def _returned(self, leaf: Leaf, value: Placed) -> Allowed:
        line = user_line(value.made) if value.made else "the argument as it came"
        maker = f"{value.made[0].primitive.name!r}, " if value.made else ""
        return self._permit(
            Allowed("unsafe_gather", "return", describe(leaf.aval), line),
            f"{self._call}: {leaf.path} is returned as if it were at the server, but "
            f"it is a client value.\n{self._facts(leaf.aval, value)}\n"
            f"  made by: {maker}{line}\n"
            "Expected an AtClients or a sum. Return fad.AtClients(...) if it stays at "
            f"the clients, or aggregate it with fad.sum or fad.mean{instead('gather')}",
        )

    def lost(self, eqn, value, atom, why):
        """Refuse a client value that an equation takes away from the clients."""
        name, line = eqn.primitive.name, user_line(self.around)
        name = "unsafe_gather" if why == "gathered" else name
        aval = (eqn.outvars[0] if atom is None else atom).aval
        text, fix = reason(why, value)
        return self._permit(
            Allowed("unsafe_gather", name, describe(aval), line),
            f"{self._call}: a client value reaches the server through {name!r}: "
            f"{text}.\n{self._facts(aval, value)}\n  at: {line}\n"
            f"Expected client values to leave the clients through fad.sum alone. {fix}"
            f"{instead('gather')}",
        )

    def hosted(self, eqn, value, atom):
        """Refuse a client value that goes to a host."""
        name, line = eqn.primitive.name, user_line(self.around)
        where = " inside a client's work" if self.depth else ""
        return self._permit(
            Allowed("callback", name, describe(atom.aval), line),
            f"{self._call}: {name!r}{where} hands a client value to the host.\n"
            f"{self._facts(atom.aval, value)}\n  at: {line}\n"
            "Expected client values to leave the clients through fad.sum alone. Return "
            f"the value from fad.map and aggregate it{instead('callback')}",
        )

    def stuck(self, eqn):
        """Refuse what cannot be followed."""
        raise PlacementError(
            f"{self._call}: a federated primitive or a callback stands inside "
            f"{eqn.primitive.name!r}, which fad.check cannot follow.\n"
            f"  at: {user_line(self.around)}\n"
            "Move it out, into jax.jit, jax.lax.scan, cond or while_loop."
        )

    def _facts(self, aval: Any, value: Placed) -> str:
        axes = ", ".join(map(str, sorted(value.axes)))
        where = f"clients on axis {axes}" if axes else "of one client"
        return f"  value: {describe(aval)}, {where}, from {value.maker or 'a constant'}"

    def _permit(self, allowed: Allowed, message: str) -> Allowed:
        if allowed.kind not in self._allow:
            raise PlacementError(message)
        self._allowed[allowed] = None
        return allowed

    def received(self, eqn, value, atom, how):
        """Note what the clients receive."""
        if value.constant or self.depth or isinstance(atom, Literal):
            return
        aval = atom.aval
        if how == "select":
            aval = aval_of(eqn.outvars[0])
        if how in ("row", "select"):
            aval = aval.update(shape=aval.shape[1:], sharding=None)
        self._learns[
            Received(type_text(aval), how, user_line(self.around, short=True))
        ] = None

    def aggregated(self, eqn: JaxprEqn, value: Placed) -> frozenset:
        """Note a sum."""
        if self.depth:
            return value.depends
        decoded = frozenset()
        if eqn.params["wire"]:
            decoded = frozenset({self._decoded(eqn, value)})
        if id(eqn) not in self._reveals:
            self._reveals[id(eqn)] = Aggregate(
                len(self._reveals) + 1,
                type_text(aval_of(eqn.outvars[0])),
                value.maker or "a server value",
                user_line(self.around, short=True),
            )
        return value.depends | {self._reveals[id(eqn)]} | decoded

    def _decoded(self, eqn: JaxprEqn, value: Placed) -> Allowed:
        codes = [ShapedArray(t.shape, t.dtype) for t in eqn.params["wire"]]
        types, line = ", ".join(map(type_text, codes)), user_line(self.around)
        return self._permit(
            Allowed("decode", eqn.primitive.name, types, line),
            f"{self._call}: the server decodes what each client sends, {types}, before "
            f"it can sum.\n{self._facts(aval_of(eqn.invars[0]), value)}\n  at: {line}\n"
            "Expected client values to leave the clients through fad.sum alone. Sum "
            "codes that add up (a sketch, integers of one scale), without wire=; in "
            f"fad.coverage_mean give secure=True{instead('decode')}",
        )

    def told(self, eqn, value, atom):
        """Refuse keys that clients have to send one by one."""
        if self.depth or eqn.params["public"] or not value.axes:
            return value.depends
        keys, line = type_text(one_of(atom.aval)), user_line(self.around)
        allowed = self._permit(
            Allowed("keys", eqn.primitive.name, keys, line),
            f"{self._call}: the server learns the keys of each client, {keys}, one by "
            f"one.\n{self._facts(atom.aval, value)}\n  at: {line}\n"
            "Expected client values to leave the clients through fad.sum alone. Say "
            "public=True of keys that the server knows without being told, as those "
            "that follow from the round and from who takes part"
            f"{instead('keys')}",
        )
        return value.depends | {allowed}

    def closed_over(self, const):
        """Place a constant where the maps and sums read it."""
        axes = self._find.axes(f"const {id(const)}")
        return Placed(axes, maker="an array that the function closes over")
