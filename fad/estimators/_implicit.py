"""The derivative of a solver by the implicit function theorem.

Where ``c(x, y(x), d) = 0`` holds for all x and d,

    dy = -(dc/dy)^-1 (dc/dx dx + dc/dd dd),

a linear system with the matrix ``dc/dy``, of which a federated condition gives products
by rounds. JAX transposes, batches and differentiates such a system again, so one rule
serves every mode, of every order.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from fad._errors import FadError, describe, nearest, path_str
from fad._strong import strong
from fad.estimators._checks import check_count, check_positive
from fad.estimators._linear import MatVec, conjugate_gradient, neumann
from fad.modes._basis import is_real
from fad.placement import (
    ambient_remat,
    clients_in_scope,
    is_at_clients,
    remat_in_scope,
)
from fad.placement._ambient import clients_or_none
from fad.primitives._client_work import merge, pick, skip

Solver = Callable[[Any, Any], Any]
LinearSolver = Callable[[MatVec, jax.Array], jax.Array]

_CALL = "fad.estimators.implicit"
_SOLVES = ("cg", "neumann")


def implicit(
    solver: Solver,
    condition: Callable[[Any, Any, Any], Any],
    *,
    solve: Literal["cg", "neumann"] | LinearSolver = "cg",
    terms: int = 10,
    step: float | None = None,
    symmetric: bool = True,
) -> Solver:
    """Differentiate a solver by the condition that its solution meets.

    The value is the solver's own; the derivative is that of the ``y`` for which
    ``condition(x, y, data) = 0``, and the solver is never differentiated: it may hold
    loops of unknown length, random numbers or stopped gradients. The result can be
    differentiated by x and by the real arrays of data, in forward and reverse mode, to
    any order, under ``jax.vmap``, ``jax.jit``, ``jax.lax.scan`` and ``fad.jit``.

    A derivative adds ``terms`` rounds, for each of which clients are sent x, y and a
    vector of y's size, and one for the derivative of the condition by x, to the rounds
    of the solver and of what y is for. In reverse mode clients keep for that last one
    what they linearised, or recompute it with ``fad.grad(..., remat=True)``.

    Where y does not meet the condition, the derivative is of nothing in particular:
    look at the norm of ``condition(x, y, data)``.

    Args:
        solver: ``solver(x, data) -> y``, federated or not; y is a pytree of real arrays
            at the server.
        condition: ``condition(x, y, data)``, of y's structure, shapes and dtypes, which
            is zero at the solution: the mean over clients of the gradient by y. Like
            the solver it takes by argument what is differentiated by.
        solve: How to solve the linear system: ``"cg"``, conjugate gradients;
            ``"neumann"``, ``step * sum_{k=0}^{terms} (I - step A)^k b``; or a function
            ``(matvec, b) -> v`` of vectors, ``[p] -> [p]``, p the size of y.
        terms: The products with the matrix ``A``, of ``"cg"`` and ``"neumann"``.
        step: Of ``"neumann"``: positive and below 2 / L, L the greatest eigenvalue.
        symmetric: Whether the matrix is, as that of a gradient. If not, its transpose
            is solved for in reverse mode by the same ``solve``.

    Returns:
        A function of ``(x, data)`` that gives y.

    Raises:
        FadError: If ``solve`` is unknown, ``terms < 1``, ``step`` is not positive, or
            ``"cg"`` is to solve an asymmetric system; when called, if x has no real
            array, y has another than real ones at the server, or the condition does
            not match y.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def minimiser(x, data):  # of the mean of (y - x d)^2 / 2
        ...     return x * fad.mean(data)
        >>> @fad.program
        ... def gradient(x, y, data):
        ...     return fad.mean(fad.map(lambda d: y - x * d, data))
        >>> y = fad.estimators.implicit(minimiser, gradient, terms=1)
        >>> data = fad.AtClients(jnp.array([1.0, 3.0]))
        >>> slope = jax.grad(lambda x: y(x, data) ** 2)
        >>> float(slope(5.0))  # of (2 x)^2
        40.0
        >>> fad.plan(slope)(5.0).cost().rounds  # minimise, solve, by x
        3

    References:
        Blondel et al., "Efficient and modular implicit differentiation", NeurIPS 2022.
        Tarzanagh et al., "FedNest: federated bilevel, minimax, and compositional
        optimization", ICML 2022.
    """
    linear_solver = _linear_solver(solve, terms, step, symmetric)

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def solution(scope: tuple, x: Any, data: Any) -> Any:
        with _in(scope):
            y = _checked(solver(x, data))
            _check_condition(y, jax.eval_shape(condition, x, y, data))
        return y

    @functools.partial(solution.defjvp, symbolic_zeros=True)
    def _(scope: tuple, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        y = solution(scope, *primals)
        at, moved, moves = _moving(primals, tangents)

        def of(y: Any, *moved: Any) -> Any:
            x, data = at(moved)
            with _in(scope):
                return jax.tree.map(strong, condition(x, y, data))

        _, change = jax.jvp(functools.partial(of, y), moved, moves)

        def matvec(v: jax.Array) -> jax.Array:
            turn = (_tree(v, y),)
            return _vector(jax.jvp(lambda y: of(y, *moved), (y,), turn)[1])

        dy = _solved(matvec, -_vector(change), linear_solver, symmetric=symmetric)
        return y, _tree(dy, y)

    @functools.wraps(solver)
    def run(x: Any, data: Any) -> Any:
        if not any(map(is_real, jax.tree.leaves(x))):
            raise FadError(
                f"{_CALL}: x is {describe(x)} without a real array; expected a pytree "
                "with one at least, to differentiate by. Make it a float array."
            )
        return solution((clients_or_none(), ambient_remat()), x, data)

    return run


def _linear_solver(
    solve: str | LinearSolver, terms: Any, step: Any, symmetric: bool
) -> LinearSolver:
    """Check the options; return ``(matvec, b) -> v``."""
    if callable(solve):
        return solve
    if solve not in _SOLVES:
        hint = nearest(str(solve), _SOLVES, "linear solvers")
        raise FadError(
            f"{_CALL}: solve={solve!r}; expected a function (matvec, b) -> v, or a "
            f"name. {hint}"
        )
    terms = check_count(_CALL, "terms", terms, least=1)
    if solve == "neumann":
        step = check_positive(_CALL, "step", step)
        return lambda matvec, b: neumann(matvec, b, terms=terms, step=step).value
    if not symmetric:
        raise FadError(
            f'{_CALL}(solve="cg", symmetric=False): conjugate gradients need a '
            'symmetric matrix. Pass solve="neumann" with a step, or a function.'
        )
    return lambda matvec, b: conjugate_gradient(matvec, b, terms=terms).value


def _solved(
    matvec: MatVec, b: jax.Array, solve: LinearSolver, *, symmetric: bool
) -> jax.Array:
    """Return ``A^-1 b``, linear in b for JAX."""

    def transposed(_: MatVec, b: jax.Array) -> jax.Array:
        # JAX's own product would have clients keep what makes it linear.
        return solve(lambda v: jax.linear_transpose(matvec, b)(v)[0], b)

    return jax.lax.custom_linear_solve(
        matvec,
        b,
        solve,
        transpose_solve=solve if symmetric else transposed,
        symmetric=symmetric,
    )


@contextlib.contextmanager
def _in(scope: tuple) -> Iterator[None]:
    """Be in the program of the call: JAX may ask for a derivative after its end."""
    clients, remat = scope
    with clients_in_scope(clients), remat_in_scope(remat):
        yield


def _moving(primals: Any, tangents: Any) -> tuple[Callable, tuple, tuple]:
    """Return ``moved -> primals``, the leaves that have a tangent, and those."""
    leaves, treedef = jax.tree.flatten(primals)
    ts = treedef.flatten_up_to(tangents)
    live = [
        not isinstance(t, SymbolicZero) and t.dtype != jax.dtypes.float0 for t in ts
    ]
    still = skip(live, leaves)

    def at(moved: Any) -> Any:
        return treedef.unflatten(merge(live, moved, still))

    return at, tuple(pick(live, leaves)), tuple(pick(live, ts))


def _vector(tree: Any) -> jax.Array:
    """Join the leaves of a tree, ``-> [p]``, in the widest of their dtypes.

    A system in one vector: JAX transposes none of which a part alone depends on x.
    """
    leaves = jax.tree.leaves(tree)
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.result_type(*leaves)
    return jnp.concatenate([leaf.reshape(-1).astype(wide) for leaf in leaves])


def _tree(vector: jax.Array, like: Any) -> Any:
    """Undo ``_vector``, in the shapes and dtypes of ``like``."""
    leaves, treedef = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        part = vector[start : start + leaf.size]
        parts.append(part.reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return treedef.unflatten(parts)


def _checked(y: Any) -> Any:
    """Return a solution as arrays of strong types.

    Raises:
        FadError: If a leaf is no real array at the server, or there is none.
    """
    named, _ = jax.tree_util.tree_flatten_with_path(y, is_leaf=is_at_clients)
    for path, leaf in named:
        dtype = getattr(leaf, "dtype", type(leaf))
        if dtype is not float and not jnp.issubdtype(dtype, jnp.floating):
            came = repr(leaf) if is_at_clients(leaf) else describe(leaf)
            raise FadError(
                f"{_CALL}: solver(x, data) returned {path_str('y', path)} = {came}; "
                "expected real arrays at the server. Return y alone, aggregated by "
                "fad.mean where clients made it."
            )
    if not named:
        raise FadError(
            f"{_CALL}: solver(x, data) returned {describe(y)} without an array; "
            "expected y, a pytree of real arrays."
        )
    return jax.tree.map(strong, y)


def _check_condition(y: Any, change: Any) -> None:
    """Refuse a condition whose result is not like y."""
    hint = "Return the gradient by y, such as jax.grad(loss, argnums=1)(x, y, data)."
    if jax.tree.structure(y) != jax.tree.structure(change):
        raise FadError(
            f"{_CALL}: condition(x, y, data) returned {jax.tree.structure(change)}; "
            f"expected the structure of y, {jax.tree.structure(y)}. {hint}"
        )
    named = jax.tree_util.tree_leaves_with_path(change)
    for (path, c), leaf in zip(named, jax.tree.leaves(y), strict=True):
        if (c.shape, c.dtype) != (leaf.shape, leaf.dtype):
            raise FadError(
                f"{_CALL}: condition(x, y, data) returned "
                f"{path_str('', path) or 'an array'} of {describe(c)}; expected "
                f"{describe(leaf)}, as {path_str('y', path)}. {hint}"
            )
