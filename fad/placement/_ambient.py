"""What a running program carries in context variables: clients, and a default."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from fad._errors import PlacementError

CLIENTS = "clients"  # the placement's name, and the mesh axis that splits it

_ambient: contextvars.ContextVar[int | None] = contextvars.ContextVar(
    "fad_clients", default=None
)
_remat: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
    "fad_remat", default=None
)
# JAX's trace caches must not serve a function traced for another number of clients.
_trace_key = jax.make_user_context(None)


@contextlib.contextmanager
def clients_in_scope(n: int | None) -> Iterator[None]:
    """Set the ambient number of clients; None inside one client's work."""
    token = _ambient.set(n)
    try:
        with _trace_key((n, _remat.get())):
            yield
    finally:
        _ambient.reset(token)


@contextlib.contextmanager
def remat_in_scope(remat: bool | None) -> Iterator[None]:
    """Set what ``fad.map(..., remat=None)`` means while a mode traces a program."""
    token = _remat.set(remat)
    try:
        with _trace_key((_ambient.get(), remat)):
            yield
    finally:
        _remat.reset(token)


def ambient_remat() -> bool | None:
    """Return what ``fad.map(..., remat=None)`` means here."""
    return _remat.get()


def clients_or_none() -> int | None:
    """Return the running program's number of clients, or None outside of one."""
    return _ambient.get()


def ambient_clients(call: str) -> int:
    """Return the running program's number of clients.

    Raises:
        PlacementError: Outside a program, or inside one client's work.
    """
    n = _ambient.get()
    if n is None:
        raise PlacementError(
            f"{call} was called outside a fad program, so the number of clients is "
            "not known. Decorate the function that holds the round with @fad.program "
            "(or @fad.program(clients=n) if no argument is AtClients); inside "
            "fad.map, one client's work, there are no clients to speak to."
        )
    return n
