"""``fad.program``: a function over a known number of clients."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax

from fad._compat import on_explicit_mesh
from fad._errors import FadError, PlacementError
from fad.placement._ambient import clients_in_scope, clients_or_none
from fad.placement._at_clients import count_clients, is_at_clients


def program(fn: Callable | None = None, *, clients: int | None = None) -> Any:
    """Mark a function as a federated program over ``n`` clients.

    The number of clients is taken from the ``AtClients`` arguments, from ``clients=``,
    or, for a program called by another program, from the caller. The result is an
    ordinary function: ``jax.jit``, ``jax.grad``, ``jax.vmap`` and the control flow of
    ``jax.lax`` apply to it and compose.

    Args:
        fn: The function; omitted when the decorator is called with options.
        clients: The number of clients, where no argument tells it.

    Returns:
        A function with the signature of ``fn``.

    Raises:
        PlacementError: When called, if the number of clients is unknown or if an
            argument disagrees with it; the message lists the arguments by path.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def total(data):
        ...     return fad.sum(fad.map(lambda x: x**2, data))
        >>> jax.jit(total)(fad.AtClients(jnp.arange(3.0)))
        Array(5., dtype=float32)

    References:
        Rush et al., Federated Automatic Differentiation, JMLR 25, 2024.
    """
    if clients is not None:
        if (
            isinstance(clients, bool)
            or not hasattr(clients, "__index__")
            or clients < 1
        ):
            raise FadError(
                f"fad.program(clients=...): expected int >= 1, got {clients!r}."
            )
        clients = operator.index(clients)
    if fn is None:
        return lambda f: program(f, clients=clients)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        n = _program_clients(fn, args, kwargs, clients)
        args, kwargs = on_explicit_mesh((args, kwargs))
        with clients_in_scope(n):
            return fn(*args, **kwargs)

    return call


def _program_clients(fn: Callable, args: tuple, kwargs: dict, given: int | None) -> int:
    name = getattr(fn, "__name__", type(fn).__name__)
    found = count_clients(f"{name}(...)", _named_arguments(fn, args, kwargs))
    if found is None and given is None:
        given = clients_or_none()
    if found is None and given is None:
        raise PlacementError(
            f"{name}(...): no argument is AtClients, so the number of clients is not "
            "known. Pass client data as fad.AtClients(...), or decorate with "
            "@fad.program(clients=n)."
        )
    if found is not None and given is not None and found != given:
        listing = "\n".join(
            f"  {root}: {value!r}"
            for root, value in _named_arguments(fn, args, kwargs)
            if any(map(is_at_clients, jax.tree.leaves(value, is_leaf=is_at_clients)))
        )
        raise PlacementError(
            f"{name}(...): the program has clients={given}, but its arguments have "
            f"{found}:\n{listing}\nPass {given} clients, or leave clients= out."
        )
    return found if found is not None else given  # type: ignore[return-value]


def _named_arguments(fn: Callable, args: tuple, kwargs: dict) -> list[tuple[str, Any]]:
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs)
        return list(bound.arguments.items())
    except (TypeError, ValueError):  # the call itself will say what is wrong with it
        return [(f"args[{i}]", a) for i, a in enumerate(args)] + list(kwargs.items())
