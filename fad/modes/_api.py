"""Derivatives of programs, with the mode chosen by name or by plan."""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.modes import auto
from fad.modes._arguments import Problem, check_scalar, normalise, problem
from fad.modes.auto import BALANCED, MODES, Choice, Constraints, Objective


class Derivative:
    """A derivative of a function: call it, or ask it to ``explain`` its mode.

    Attributes:
        explain: A function of the arguments that returns the ``Choice`` of mode, with
            the planned cost of every candidate; print it.
    """

    def __init__(self, fn: Callable, options: dict[str, Any], finish: Callable):
        functools.update_wrapper(self, fn)
        self._fn, self._options, self._finish = fn, options, finish

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the derivative at these arguments."""
        return self._finish(self._problem(args, kwargs), self._options)

    def explain(self, *args: Any, **kwargs: Any) -> Choice:
        """Return which mode is taken for these arguments, and why."""
        return _choose(self._problem(args, kwargs), self._options)

    def _problem(self, args: tuple, kwargs: dict) -> Problem:
        name = getattr(self._fn, "__name__", type(self._fn).__name__)
        call = f"{self._options['call']}({name})"
        argnums = normalise(self._options["argnums"], call, args)
        has_aux = self._options["has_aux"]
        return problem(call, self._fn, argnums, args, kwargs, has_aux=has_aux)


def _choose(task: Problem, options: dict[str, Any]) -> Choice:
    names = ("objective", "constraints", "mode", "remat", "what")
    return auto.choose(task, **{k: options[k] for k in names})


def _run(task: Problem, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    mode, remat, what = options["mode"], options["remat"], options["what"]
    if not jax.tree.leaves(task.chosen):
        mode = "reverse"  # of nothing
    elif mode == "auto" or options["constraints"]:
        chosen = _choose(task, options).candidate
        # Reverse mode keeps by default; asked for, fad.jit would keep too.
        default = remat is None and chosen.mode == "reverse" and not chosen.remat
        mode, remat = chosen.mode, None if default else chosen.remat
    value, derivative, aux = getattr(MODES[mode], what)(task, remat=remat)
    if what == "grad":  # of the argument's dtype in every mode, as in JAX
        derivative = jax.tree.map(
            lambda g, x: g.astype(jnp.result_type(x)), derivative, task.chosen
        )
    single = isinstance(options["argnums"], SupportsIndex)
    if single and what == "grad":
        derivative = derivative[0]
    elif single:
        is_row = _is_tuple_of(len(task.chosen))
        derivative = jax.tree.map(lambda row: row[0], derivative, is_leaf=is_row)
    return value, derivative, aux


def _is_tuple_of(length: int) -> Callable[[Any], bool]:
    return lambda x: type(x) is tuple and len(x) == length


def _check_mode(call: str, mode: str) -> None:
    known = ["auto", *MODES]
    if mode not in known:
        near = difflib.get_close_matches(str(mode), known, 1, 0)
        raise FadError(
            f"{call}: unknown mode {mode!r}. Did you mean {near[0]!r}? Known: "
            f"{', '.join(known)}."
        )


def value_and_grad(
    fn: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    remat: bool | None = None,
    objective: Objective = BALANCED,
    constraints: Constraints = (),
) -> Derivative:
    """Return a function that gives ``fn``'s value and its gradient.

    Args:
        fn: A program, or a function of programs, that returns a real scalar.
        argnums: The arguments to differentiate by, server or client values.
        mode: ``"forward"``: tangents ride with the values, no further round, clients
            keep nothing, traffic times ``1 + k`` for ``k`` numbers. ``"reverse"``: one
            backward round per forward round, whatever ``k``. ``"mixed"``: forward
            across the wire and reverse inside the last round's clients, which return
            a gradient; ``"mixed-products"``: likewise, but they return its products
            with the tangents. ``"auto"``: the cheapest of those that apply, by plan.
        has_aux: Whether ``fn`` returns ``(value, aux)``.
        remat: What maps without a ``remat`` of their own do: recompute at the client
            (True) or keep (False); None recomputes in forward and mixed mode and keeps
            in reverse.
        objective: For ``"auto"``: ``"rounds"``, ``"bytes"``, ``"client_flops"``,
            ``"memory"`` (what clients keep), or a dict of weights, each item relative
            to the cost of ``fn`` itself.
        constraints: ``"stateless"`` (clients keep nothing), ``"fresh_cohorts"`` (no
            client comes back), or a dict of upper bounds on the items of ``Cost``.

    Returns:
        A function of ``fn``'s arguments that gives ``(value, gradient)``, or with
        ``has_aux`` ``((value, aux), gradient)``; its ``explain`` method, of the same
        arguments, says which mode is taken and why.

    Raises:
        FadError: If the mode, objective or a constraint is unknown; when called, if an
            argument is no real array or the value no real scalar.
        PlanError: When called, if the mode does not apply, or no mode meets the
            constraints.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> @fad.program
        ... def loss(w, data):
        ...     return fad.mean(fad.map(lambda x: (w * x) ** 2, data))
        >>> data = fad.AtClients(jnp.array([1.0, 2.0]))
        >>> value, slope = fad.value_and_grad(loss, mode="forward")(2.0, data)
        >>> float(value), float(slope)
        (10.0, 10.0)

    References:
        Rush et al., Federated Automatic Differentiation, JMLR 25, 2024.
    """
    _check_mode("fad.value_and_grad", mode)

    def finish(task: Problem, options: dict[str, Any]) -> Any:
        value, gradient, aux = _run(_scalar(task), options)
        return ((value, aux), gradient) if has_aux else (value, gradient)

    return Derivative(fn, _options("fad.value_and_grad", "grad", locals()), finish)


def _options(call: str, what: str, given: dict[str, Any]) -> dict[str, Any]:
    names = ("argnums", "mode", "has_aux", "remat", "objective", "constraints")
    return {"call": call, "what": what, **{k: given[k] for k in names}}


def _scalar(task: Problem) -> Problem:
    def checked(chosen: tuple, rest: Any) -> tuple[Any, Any]:
        value, aux = task.fn(chosen, rest)
        check_scalar(task.name, value)
        return value, aux

    checked.__name__ = task.fn.__name__
    return task._replace(fn=checked)


def grad(
    fn: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    remat: bool | None = None,
    objective: Objective = BALANCED,
    constraints: Constraints = (),
) -> Derivative:
    """Return a function that gives ``fn``'s gradient through the communication.

    Args:
        fn: A program, or a function of programs, that returns a real scalar.
        argnums: The arguments to differentiate by, server or client values.
        mode: As in ``fad.value_and_grad``.
        has_aux: Whether ``fn`` returns ``(value, aux)``.
        remat: As in ``fad.value_and_grad``.
        objective: As in ``fad.value_and_grad``.
        constraints: As in ``fad.value_and_grad``.

    Returns:
        A function of ``fn``'s arguments that gives the gradient, with ``has_aux``
        ``(gradient, aux)``; its ``explain`` method says which mode is taken and why.

    Raises:
        FadError: As ``fad.value_and_grad``.
        PlanError: As ``fad.value_and_grad``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> @fad.program
        ... def loss(w, data):
        ...     return fad.mean(fad.map(lambda x: (w * x) ** 2, data))
        >>> data = fad.AtClients(jnp.array([1.0, 2.0]))
        >>> float(fad.grad(loss)(2.0, data))
        10.0
        >>> fad.grad(loss).explain(2.0, data).candidate.mode
        'reverse'
    """
    _check_mode("fad.grad", mode)

    def finish(task: Problem, options: dict[str, Any]) -> Any:
        _, gradient, aux = _run(_scalar(task), options)
        return (gradient, aux) if has_aux else gradient

    return Derivative(fn, _options("fad.grad", "grad", locals()), finish)


def jacobian(
    fn: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    remat: bool | None = None,
    objective: Objective = BALANCED,
    constraints: Constraints = (),
) -> Derivative:
    """Return a function that gives ``fn``'s Jacobian.

    For an output ``[*out]`` and an argument ``[*in]`` it is ``[*out, *in]``, as in
    ``jax.jacobian``; trees nest, outputs outside.

    Args:
        fn: A program, or a function of programs.
        argnums: The arguments to differentiate by.
        mode: As in ``fad.value_and_grad``.
        has_aux: Whether ``fn`` returns ``(value, aux)``.
        remat: As in ``fad.value_and_grad``.
        objective: As in ``fad.value_and_grad``.
        constraints: As in ``fad.value_and_grad``.

    Returns:
        A function of ``fn``'s arguments that gives the Jacobian, with ``has_aux``
        ``(jacobian, aux)``.

    Raises:
        FadError: As ``fad.value_and_grad``, but for the shape of the value.
        PlanError: As ``fad.value_and_grad``.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> average = fad.program(lambda w, x: w * fad.mean(x))
        >>> data = fad.AtClients(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> fad.jacobian(average)(5.0, data)
        Array([2., 3.], dtype=float32)
    """
    _check_mode("fad.jacobian", mode)

    def finish(task: Problem, options: dict[str, Any]) -> Any:
        _, matrix, aux = _run(task, options)
        return (matrix, aux) if has_aux else matrix

    return Derivative(fn, _options("fad.jacobian", "jacobian", locals()), finish)
