"""Why ``fad.check`` refuses an equation, and the likely fix."""

from fad.plan._check_parts import runs
from fad.plan._check_values import Placed

_AGGREGATE = (
    "Compute at the clients with fad.map and aggregate with fad.sum, fad.mean or "
    "fad.weighted_mean"
)
# What an equation does with a client value, and the fix.
WHY = {
    "axis": ("it does not keep clients apart", _AGGREGATE),
    "unknown": ("fad has no rule that says it keeps clients apart", _AGGREGATE),
    "gathered": ("the server gets each client's by itself", _AGGREGATE),
    "mixed": ("it joins values whose client axes differ", _AGGREGATE),
    "parts": (
        "it joins values of different clients",
        "Take what belongs together from the same places of a cohort "
        "(fad.submodels.tiers), or aggregate first",
    ),
    "one": (
        "it takes one client alone, and a sum over one client is that client's value",
        "Take a run of at least two clients (fad.submodels.tiers), or aggregate over "
        "all with fad.sum, fad.mean or fad.weighted_mean",
    ),
    "scanned": ("it goes through the clients one by one", _AGGREGATE),
    "misplaced": (
        "the client axis is not in front, so that one client gets other clients' "
        "values",
        "Leave the client axis of AtClients leaves in front, [n, *s]",
    ),
    "broadcast": (
        "it sends all clients' values to every client",
        "Pass the value to fad.map as an argument, so that each client gets its own, "
        "or aggregate it first with fad.sum or fad.mean",
    ),
}


def reason(why: str, value: Placed) -> tuple[str, str]:
    """Return what an equation does with a client value, and the fix."""
    text, fix = WHY[why]
    if why == "parts":
        axis = next(labels for labels in map(runs, value.axes.values()) if labels[1:])
        text += f", {' and '.join(map(str, axis))}"
    return text, fix


def instead(kind: str) -> str:
    """Return the end of a message: what lets it pass."""
    name = {"gather": "unsafe_gather"}.get(kind, kind)
    return f"; fad.check(..., allow={name!r}) reports it instead."
