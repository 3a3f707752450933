"""Following client axes through broadcasts, maps, sums and selections."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fad._compat import JaxprEqn
from fad.plan._check_parts import clients_of, union
from fad.plan._check_values import CLIENT, Labels, Placed, at_server, mapped, shifted
from fad.plan._report import Allowed


class FederatedEqns:
    """Follow federated equations; subclasses say what to do at the events.

    Attributes:
        depth: How many maps stand around: inside one, a client's own values have no
            client axis, unless a program runs inside the client's work.
        around: The equations that stand around, the innermost first.
    """

    def __init__(self):
        self.depth = 0
        self.around: list[JaxprEqn] = []

    def lost(self, eqn: JaxprEqn, value: Placed, atom: Any, why: str) -> Any:
        """Handle a client value that an equation takes away from the clients.

        Returns:
            What was allowed, where the equation's outputs now are the server's; or
            None to go on with what is left of the axes.
        """
        raise NotImplementedError

    def hosted(self, eqn: JaxprEqn, value: Placed, atom: Any) -> Allowed | None:
        """Handle a client value that goes to a host."""
        raise NotImplementedError

    def stuck(self, eqn: JaxprEqn) -> None:
        """Handle an equation with federated ones inside that cannot be followed."""

    def received(self, eqn: JaxprEqn, value: Placed, atom: Any, how: str) -> None:
        """Handle a server value that goes to the clients."""

    def mapped(self, eqn: JaxprEqn, ins: Sequence[Placed]) -> None:
        """Handle the operands of a map or a sum."""

    def aggregated(self, eqn: JaxprEqn, value: Placed) -> frozenset:
        """Handle a sum; return what its output depends on."""
        return value.depends

    def told(self, eqn: JaxprEqn, value: Placed, atom: Any) -> frozenset:
        """Handle the keys of slices; return what depends on them."""
        del eqn, atom
        return value.depends

    def closed_over(self, const: Any) -> Placed:
        """Place an array that the function closes over."""
        del const
        return Placed()

    def run(self, closed: Any, args: Sequence[Placed]) -> list[Placed]:
        """Follow a jaxpr on these inputs; return its outputs."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------
    # federated equations
    # --------------------------------------------------------------------------------

    def _broadcast(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        (x,) = ins
        x = self._server(eqn, x)
        self.received(eqn, x, eqn.invars[0], "broadcast")
        return [replace(x, axes=mapped(x), maker="fad.broadcast", made=())]

    def _select(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        x, *keys = ins
        x = self._server(eqn, x)
        _, *keys = self._operands(eqn, [Placed(), *keys])
        self.mapped(eqn, [Placed(), *keys])
        clients, allowed = self._together(eqn, keys)
        if allowed is not None:
            return [at_server(ins, allowed)]
        self.received(eqn, x, eqn.invars[0], "select")
        depends = x.depends | self._keys(eqn, keys)
        return [Placed(mapped(x, clients), depends, False, "fad.select")]

    def _server(self, eqn: JaxprEqn, x: Placed) -> Placed:
        """Check that what is sent is the server's."""
        allowed = self.lost(eqn, x, eqn.invars[0], "broadcast") if x.axes else None
        return x if allowed is None else at_server([x], allowed)

    def _keys(self, eqn: JaxprEqn, keys: list[Placed]) -> frozenset:
        atoms = eqn.invars[1:]
        told = (self.told(eqn, k, atom) for k, atom in zip(keys, atoms, strict=True))
        return frozenset().union(*told)

    def _together(
        self, eqn: JaxprEqn, ins: list[Placed]
    ) -> tuple[Labels, Allowed | None]:
        """Return which clients these values are of, the same ones for all."""
        of_clients = [x for x in ins if 0 in x.axes]
        axes, why = union([{0: x.axes[0]} for x in of_clients])
        if why:
            first = replace(of_clients[0], axes=axes)
            return CLIENT, self.lost(eqn, first, None, why)
        return clients_of(axes.get(0, CLIENT)), None

    def _map(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        ins = self._operands(eqn, ins)
        self.mapped(eqn, ins)
        clients, allowed = self._together(eqn, ins)
        if allowed is not None:
            return [at_server(ins, allowed)] * len(eqn.outvars)
        for x, atom in zip(ins, eqn.invars, strict=True):
            if not x.axes:
                self.received(eqn, x, atom, "row")
        own = [replace(x, axes=shifted(x, -1), constant=False) for x in ins]
        self.depth += 1
        outs = self.run(eqn.params["jaxpr"], own)
        self.depth -= 1
        maker = f"fad.map({eqn.params['name']}, ...)"
        return [Placed(mapped(y, clients), y.depends, False, maker) for y in outs]

    def _sum(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        ins = self._operands(eqn, ins)
        self.mapped(eqn, ins)
        _, allowed = self._together(eqn, ins)
        if allowed is not None:
            return [at_server(ins, allowed)]
        x, *keys = ins
        depends = self.aggregated(eqn, x) | self._keys(eqn, keys)
        return [Placed(shifted(x, -1), depends, x.constant, "fad.sum")]

    def _operands(self, eqn: JaxprEqn, ins: list[Placed]) -> list[Placed]:
        """Check that client axes stand where a map or a sum reads them, in front."""
        checked = []
        for x, atom in zip(ins, eqn.invars, strict=True):
            if x.axes and 0 not in x.axes:
                allowed = self.lost(eqn, x, atom, "misplaced")
                x = x if allowed is None else at_server([x], allowed)
            checked.append(x)
        return checked
