"""DrJAX's interface on top of fad: plain arrays with a leading client axis.

    program(placements={"clients": n})   broadcast   map_fn(fn, args)
    reduce_sum   reduce_mean   reduce_weighted_mean

Programs written against that interface run unchanged, with fad's checks.
"""

from collections.abc import Callable, Mapping
from typing import Any

import fad


def program(*, placements: Mapping[str, int]) -> Callable[[Callable], Callable]:
    """Decorate a program over the one placement's number of clients."""
    if len(placements) != 1:
        raise ValueError(f"expected exactly one placement, got {dict(placements)}")
    (clients,) = placements.values()
    return fad.program(clients=clients)


def broadcast(x: Any) -> Any:
    """Stack one copy of ``x`` per client."""
    return fad.broadcast(x).unsafe_gather()


def map_fn(fn: Callable, args: Any) -> Any:
    """Apply ``fn`` to each client's slices; a tuple is unpacked."""
    args = args if isinstance(args, tuple) else (args,)
    return fad.map(fn, *map(fad.AtClients, args)).unsafe_gather()


def reduce_sum(x: Any) -> Any:
    """Sum over the client axis."""
    return fad.sum(fad.AtClients(x))


def reduce_mean(x: Any) -> Any:
    """Average over the client axis."""
    return fad.mean(fad.AtClients(x))


def reduce_weighted_mean(x: Any, w: Any) -> Any:
    """Average over the client axis with one weight per client."""
    return fad.weighted_mean(fad.AtClients(x), fad.AtClients(w))
