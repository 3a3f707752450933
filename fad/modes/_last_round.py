"""The last round of a program as one client's work and what the server does after."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fad._compat import JaxprEqn, bind, jaxpr_as_fun
from fad._errors import PlanError
from fad.modes._cut import SENT, SUMS, Cut, read, variables
from fad.primitives import take


class LastRound(NamedTuple):
    """The last round, taken apart.

    Attributes:
        sent: The server variables that the clients read.
        own: The client variables that they read.
        work: ``(sent, own) -> what is summed``, at one client: for each sum its
            operands, a summand and the keys that say where it belongs, if any.
        sums: The equations of the sums.
        finish: ``variables by name -> outputs``, at the server.
        clients: The number of clients.
    """

    sent: list[Any]
    own: list[Any]
    work: Callable[[Sequence[Any], Sequence[Any]], list[list[Any]]]
    sums: list[JaxprEqn]
    finish: Callable[[dict[Any, Any]], list[Any]]
    clients: int


def last_round(halves: Cut) -> LastRound:
    """Take the last round apart.

    Raises:
        PlanError: If clients do more in it than maps of what they are sent and have,
            or keep something that is returned.
    """
    eqns = [halves.closed.jaxpr.eqns[i] for i in sorted(halves.late)]
    sums = [e for e in eqns if e.primitive.name in SUMS]
    at_clients = [e for e in eqns if halves.places[e.outvars[0]].at_clients]
    server = [e for e in eqns if e not in at_clients and e not in sums]
    sends = [e for e in at_clients if e.primitive.name in SENT]
    made = {v for e in at_clients for v in e.outvars}
    _check(halves, at_clients)
    reads = [
        v
        for e in [*at_clients, *sums]
        for v in variables(e.invars[1:] if e in sends else e.invars)
    ]
    own = [v for v in dict.fromkeys(reads) if v not in made]
    sent = list(dict.fromkeys(v for e in sends for v in variables(e.invars[:1])))

    def work(sent_values: Sequence[Any], own_values: Sequence[Any]) -> list[list[Any]]:
        env = dict(zip([*sent, *own], [*sent_values, *own_values], strict=True))
        for eqn in at_clients:
            outs = _at_one(eqn, [read(env, v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [[read(env, v) for v in e.invars] for e in sums]

    def finish(known: dict[Any, Any]) -> list[Any]:
        env = dict(known)
        for eqn in server:
            outs = bind(eqn, [read(env, v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(env, v) for v in halves.closed.jaxpr.outvars]

    return LastRound(sent, own, work, sums, finish, sums[0].params["clients"])


def _at_one(eqn: JaxprEqn, ins: list[Any]) -> list[Any]:
    """Return what one client has of an equation."""
    if eqn.primitive.name == "fad_map":
        return jaxpr_as_fun(eqn.params["jaxpr"])(*ins)
    if eqn.primitive.name == "fad_select":
        return [take(*ins, axes=eqn.params["axes"])]
    return ins


def _check(halves: Cut, at_clients: Sequence[Any]) -> None:
    other = {e.primitive.name for e in at_clients} - {*SENT, "fad_map"}
    if other:
        raise PlanError(
            "mode='mixed-products': in the last round clients' values meet "
            f"outside fad.map, in {', '.join(sorted(other))}. Use mode='mixed'."
        )
    made = {v for e in at_clients for v in e.outvars}
    if any(v in made for v in variables(halves.closed.jaxpr.outvars)):
        raise PlanError(
            "mode='mixed-products': the function returns a client value that the last "
            "round made. Use mode='mixed', or aggregate it."
        )
