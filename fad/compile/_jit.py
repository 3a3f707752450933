"""``fad.jit``: ``jax.jit`` for federated programs, client work streamed."""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fad._compat import is_tracer
from fad._errors import FadError, describe
from fad.compile._auto import Choice, choose, spared
from fad.compile._chunk import Policy
from fad.compile._explain import Explanation, Report
from fad.compile._hosted import (
    HostProgram,
    as_clients,
    as_read,
    flat,
    is_stream,
    mark_static,
)
from fad.compile._layout import (
    check_same_call,
    check_unsplit,
    is_array,
    is_padded,
    lay_out,
    unwrap,
)
from fad.compile._mesh import check_mesh
from fad.compile._pass import stream
from fad.distributed import guard
from fad.placement import CLIENTS


class Jitted:
    """A compiled function: call it, ``lower`` it, or ask it to ``explain`` itself."""

    def __init__(
        self,
        fn: Callable,
        chunk: int | str | None,
        mesh: Mesh | None,
        options: dict[str, Any],
    ):
        functools.update_wrapper(self, fn)
        self._name = _name(fn)
        self._fn, self._chunk, self._mesh, self._options = fn, chunk, mesh, options
        self._devices = 1 if mesh is None else mesh.shape[CLIENTS]
        self._call = f"fad.jit({self._name})"
        self._in_trace: Any = jax.jit(fn, **options)
        self._compiled: dict[Policy, Any] = {}
        self._choices: dict[Any, Choice] = {}
        self._layouts: dict[Any, Any] = {}
        self._hosted: dict[Any, HostProgram] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        leaves, _ = flat(args, kwargs)
        if any(map(is_tracer, leaves)):
            return self._in_trace(*args, **kwargs)
        if any(map(is_stream, leaves)):
            return self._from_host(args, kwargs)
        with guard(self._call):
            args, kwargs = self._on_mesh(args, kwargs)
            run = self._jit(self._choice(args, kwargs, measure=True).policy)
            out = run(*args, **kwargs)
            # Dispatching the next round before this one ends can deadlock CPU devices,
            # and a lost process shows where its result is waited for.
            return out if self._mesh is None else jax.block_until_ready(out)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Return the lowered program, as ``jax.jit(f).lower``.

        Its chunks are those remembered or the cost model's: nothing is measured.
        """
        args, kwargs = self._on_mesh(args, kwargs)
        choice = self._choice(args, kwargs, measure=False)
        return self._jit(choice.policy).lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        """Return the traced program, as ``jax.jit(f).trace``."""
        args, kwargs = self._on_mesh(args, kwargs)
        choice = self._choice(args, kwargs, measure=False)
        return self._jit(choice.policy).trace(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return the types of the outputs, without compiling."""
        return self._in_trace.eval_shape(*args, **kwargs)

    def clear_cache(self) -> None:
        """Forget what was compiled."""
        self._in_trace.clear_cache()
        self._compiled.clear()
        self._choices.clear()
        self._layouts.clear()
        self._hosted.clear()

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Return the sweeps, their chunks and why, and what could not be streamed."""
        given, streamed = (args, kwargs), any(map(is_stream, flat(args, kwargs)[0]))
        args, kwargs = (as_clients if streamed else self._on_mesh)(args, kwargs)
        choice = self._choice(args, kwargs, measure=False)
        report = self._report(choice.policy, args, kwargs)
        sweeps = tuple(report.sweeps)
        if streamed:
            sweeps = as_read(sweeps, *given, choice.policy, self._devices)
        return Explanation(
            name=self._name,
            why=choice.why,
            sweeps=sweeps,
            unstreamed=tuple(report.unstreamed),
            devices=self._devices,
        )

    # ---- inside --------------------------------------------------------------------

    def _from_host(self, args: tuple, kwargs: dict) -> Any:
        static = self._options["static_argnames"]
        args, kwargs = mark_static(self._fn, args, kwargs, static)
        key = _signature(args, kwargs)
        if key not in self._hosted:
            choice = self._choice(*as_clients(args, kwargs), measure=False)
            self._hosted[key] = HostProgram(
                self._fn, args, kwargs, self._options, choice.policy, self._mesh
            )
        return self._hosted[key](args, kwargs)

    def _jit(self, policy: Policy) -> Any:
        if policy not in self._compiled:
            run = self._streamed(policy, Report())
            self._compiled[policy] = jax.jit(run, **self._options)
        return self._compiled[policy]

    def _streamed(self, policy: Policy, report: Report) -> Callable:
        @functools.wraps(self._fn)
        def run(*args, **kwargs):
            leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_padded)
            arrays = [x for x in leaves if is_padded(x) or is_tracer(x)]

            def of(*given):
                rest = iter(given)
                full = [
                    next(rest) if is_padded(x) or is_tracer(x) else x for x in leaves
                ]
                args, kwargs = jax.tree.unflatten(tree, full)
                return self._fn(*args, **kwargs)

            of.__name__ = self._name
            report.back_to((0, 0))
            return stream(of, arrays, policy=policy, mesh=self._mesh, report=report)

        return run

    def _report(self, policy: Policy, args: tuple, kwargs: dict) -> Report:
        report = Report()
        run = jax.jit(self._streamed(policy, report), **self._options)
        run.eval_shape(*args, **kwargs)
        return report

    def _choice(self, args: tuple, kwargs: dict, *, measure: bool) -> Choice:
        if self._chunk != "auto":
            size = 0 if self._chunk is None else self._chunk
            said = "all clients at a time" if size == 0 else f"chunk={size}"
            return Choice(Policy(size=size), f"{said}, as asked")  # type: ignore[arg-type]
        signature = _signature(args, kwargs)
        measure = measure and jax.process_count() == 1
        if (signature, True) in self._choices:
            return self._choices[signature, True]
        if (signature, measure) not in self._choices:

            def run(policy: Policy) -> Any:
                given = spared(args, kwargs, self._options["donate_argnums"])
                return self._jit(policy)(*given[0], **given[1])

            sweeps = self._report(Policy("model"), args, kwargs).sweeps
            can = run if measure else None
            found = choose(sweeps, self._devices, can, str(signature))
            self._choices[signature, measure] = found
            kept = {choice.policy for choice in self._choices.values()}
            for policy in self._compiled.keys() - kept:  # measured, and slower
                del self._compiled[policy]
        return self._choices[signature, measure]

    def _on_mesh(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self._mesh is None:
            check_unsplit(self._call, args, kwargs)
            return args, kwargs
        args, kwargs = unwrap(args, kwargs)
        check_same_call(self._call, self._fn, args, kwargs)
        signature = _signature(args, kwargs)
        if signature not in self._layouts:
            self._layouts[signature] = lay_out(
                self._call, self._fn, args, kwargs, self._mesh
            )
        return self._layouts[signature](args, kwargs)


def _signature(args: tuple, kwargs: dict) -> Any:
    leaves, tree = flat(args, kwargs)
    return tree, tuple(map(_kind, leaves))


def _kind(x: Any) -> Any:
    if is_array(x):
        return x.shape, str(x.dtype), getattr(x, "weak_type", False)
    if isinstance(x, bool | int | float | complex):
        return type(x).__name__
    if is_stream(x):
        return x.tree, tuple((t.shape, str(t.dtype)) for t in x.types_of_all()), x.size
    return type(x).__name__, x


def jit(
    fn: Callable,
    *,
    chunk: int | str | None = "auto",
    mesh: Mesh | None = None,
    donate_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
) -> Jitted:
    """Compile a federated program so that memory does not grow with its clients.

    ``fad.broadcast``, ``fad.map`` and ``fad.sum`` become one loop over chunks of
    clients per round: server values are not tiled, sums are accumulated (slices, of
    ``fad.select`` and ``fad.deselect``, cut and added a chunk at a time), and what a
    backward round needs of a forward one is computed again at the client, from what the
    server sent (one checkpoint per round and chunk), except where
    ``fad.map(..., remat=False)`` asks to keep it. So take derivatives inside:
    ``fad.jit(fad.grad(loss))``. A call inside another trace (``jax.grad(fad.jit(f))``)
    stays a program there, for the outer ``fad.jit`` to stream.

    A round that takes one gradient (or Hessian-vector product) at the server's own
    point is compiled as the gradient of the mean: the sum moves into the client's last
    matrix products.

    Args:
        fn: A program, a function of programs, or a derivative of one; or any function
            of JAX.
        chunk: Clients at a time; ``None`` for all at once; ``"auto"`` to choose by a
            cost model, confirmed by timing up to three candidates once per program,
            shapes and machine, and remembered on disk (``FAD_CACHE_DIR``).
        mesh: A mesh with an axis ``clients``, over which clients are split (their
            number need not divide); its other axes stay the program's.
        donate_argnums: As in ``jax.jit``.
        static_argnames: As in ``jax.jit``.

    Returns:
        A function that behaves as that of ``jax.jit``, with ``lower``, ``trace``,
        ``eval_shape`` and ``clear_cache``, and with ``explain``, of ``fn``'s arguments:
        which chunks were chosen and why, and what could not be streamed.

    Raises:
        FadError: If ``fn`` is no function, or ``chunk`` or ``mesh`` cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def loss(w, data):
        ...     return fad.mean(fad.map(lambda x: (w * x) ** 2, data))
        >>> data = fad.AtClients(jnp.ones(1024))
        >>> gradient = fad.jit(fad.grad(loss), chunk=8)
        >>> float(gradient(3.0, data))
        6.0
        >>> print(gradient.explain(3.0, data))
        fad.jit(loss): chunk=8, as asked
          sweep 1: 1024 clients, 8 at a time: <lambda>; 1 sums
    """
    if not callable(fn):
        raise FadError(f"fad.jit({describe(fn)}): expected a function.")
    call = f"fad.jit({_name(fn)})"
    checked = _check_chunk(call, chunk)
    donate = (
        (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    )
    options = {"donate_argnums": donate, "static_argnames": static_argnames}
    return Jitted(fn, checked, check_mesh(call, mesh), options)


def _name(fn: Callable) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def _check_chunk(call: str, chunk: Any) -> int | str | None:
    if chunk is None or chunk == "auto":
        return chunk
    if isinstance(chunk, bool) or not hasattr(chunk, "__index__") or chunk < 1:
        raise FadError(
            f"{call}: chunk={chunk!r}; expected an int >= 1 (clients at a time), None "
            '(all at once) or "auto".'
        )
    return operator.index(chunk)
