"""Products with a derivative: ``fad.jvp`` and ``fad.vjp``, in either mode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.modes import forward, mixed, reverse
from fad.modes._arguments import Problem, problem
from fad.placement import remat_in_scope


def jvp(
    fn: Callable,
    primals: tuple,
    tangents: tuple,
    *,
    mode: str = "forward",
    remat: bool | None = None,
) -> tuple[Any, Any]:
    """Return ``fn``'s value and its derivative along ``tangents``.

    Args:
        fn: A program, or a function of programs.
        primals: Its arguments.
        tangents: A direction of the same structure.
        mode: ``"forward"``: the tangent rides with the value, no further round.
            ``"reverse"``: the transpose of ``fad.vjp``; a test of the rules more than a
            way to compute.
        remat: As in ``fad.value_and_grad``.

    Returns:
        ``(value, tangent)``.

    Raises:
        FadError: If the mode is neither.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> square = fad.program(
        ...     lambda w, x: fad.mean(fad.map(lambda v: w * v, x)) ** 2
        ... )
        >>> data = fad.AtClients(jnp.array([1.0, 3.0]))
        >>> value, slope = fad.jvp(lambda w: square(w, data), (3.0,), (1.0,))
        >>> float(value), float(slope)
        (36.0, 24.0)
    """
    if mode == "forward":
        with remat_in_scope(remat is not False):
            return jax.jvp(fn, primals, tangents)
    _known("fad.jvp", mode, "reverse")
    value, pull = vjp(fn, *primals, remat=remat)
    _, push = jax.vjp(pull, jax.tree.map(jnp.zeros_like, value))
    return value, push(tuple(tangents))[0]


def vjp(
    fn: Callable,
    *primals: Any,
    mode: str = "reverse",
    remat: bool | None = None,
) -> tuple[Any, Callable[[Any], tuple]]:
    """Return ``fn``'s value and the function from its cotangent to the gradient.

    Args:
        fn: A program, or a function of programs.
        *primals: Its arguments, all differentiated.
        mode: As in ``fad.value_and_grad``, without ``"auto"``.
        remat: As in ``fad.value_and_grad``.

    Returns:
        ``(value, pull)`` with ``pull(cotangent) -> one cotangent per primal``.

    Raises:
        FadError: If the mode is unknown or an argument is no real array.
        PlanError: If mixed mode does not apply.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> total = fad.program(lambda w, x: fad.sum(fad.map(lambda v: w * v, x)))
        >>> data = fad.AtClients(jnp.array([1.0, 3.0]))
        >>> value, pull = fad.vjp(lambda w: total(w, data), 3.0, mode="mixed")
        >>> float(value), float(pull(jnp.ones(()))[0])
        (12.0, 4.0)
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    numbers = tuple(range(len(primals)))
    call = f"fad.vjp({name})"
    task = problem(call, fn, numbers, primals, {}, has_aux=False)
    if mode in ("reverse", "mixed"):
        module = reverse if mode == "reverse" else mixed
        value, pull, _ = module.pullback(task, remat=remat)
        return value, pull
    _known("fad.vjp", mode, "mixed", "reverse")
    return _forward_vjp(task, remat)


def _forward_vjp(task: Problem, remat: bool | None) -> tuple[Any, Callable]:
    value, matrix, _ = forward.jacobian(task, remat=remat)
    rows = jax.tree.structure(value).flatten_up_to(matrix)

    def pull(cotangent):
        parts = [
            jax.tree.map(lambda m, ct=ct: jnp.tensordot(ct, m, jnp.ndim(ct)), row)
            for ct, row in zip(jax.tree.leaves(cotangent), rows, strict=True)
        ]
        return jax.tree.map(lambda *p: sum(p[1:], p[0]), *parts)

    return value, pull


def _known(call: str, mode: str, *others: str) -> None:
    known = ("forward", *others)
    if mode not in known:
        raise FadError(f"{call}: unknown mode {mode!r}. Known: {', '.join(known)}.")
