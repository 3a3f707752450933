"""``fad_map``: every client runs the same function on its own values.

One equation carries ``jaxpr``, one client's work ``f``. Its derivative is again a pair
of maps. With ``(y, r) = f_fwd(x)`` the outputs and residuals of ``jax.linearize``, and
``f_lin(r, dx) = Df(x) dx``,

    JVP:        y, r = map(f_fwd)(x);   dy = map(f_lin)(r, dx)
    transpose:  dx'  = map(f_lin^T)(r, dy')
    batching:   map(vmap f)

so communication never enters, and residuals ``r`` stay where they were made: they are
the state a client keeps between the forward and the backward round.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad._compat import (
    ClosedJaxpr,
    Primitive,
    ad,
    add_leading,
    auto_axis,
    batching,
    dce,
    drop_leading,
    hoist_constants,
    jaxpr_as_fun,
    make_jaxpr,
    mesh_axis,
    mlir,
    register_dce,
)
from fad._errors import PlacementError, describe, path_str
from fad.placement import (
    CLIENTS,
    AtClients,
    ambient_clients,
    ambient_remat,
    clients_in_scope,
    is_at_clients,
)
from fad.primitives._broadcast_sum import broadcast_p
from fad.primitives._client_work import batch, linearize, merge, pick, skip, transpose
from fad.primitives._operands import (
    client_leaves,
    constrain,
    is_arraylike,
    server_array,
)

map_p = Primitive("fad_map")
map_p.multiple_results = True


# ------------------------------------------------------------------------------------
# fad_map
# ------------------------------------------------------------------------------------


def _map_impl(*args, jaxpr, clients, placement, remat, name):
    del remat, name
    axis = mesh_axis(placement, clients)
    split = axis if axis is not None and auto_axis(axis) else None
    each = jax.vmap(jaxpr_as_fun(jaxpr), axis_size=clients, spmd_axis_name=split)
    args = [constrain(x, clients, placement) for x in args]
    return [constrain(y, clients, placement) for y in each(*args)]


def _map_eager(*args, **params):
    # Compiled for this call alone: whoever wants the program compiled jits the program.
    return jax.jit(lambda *xs: _map_impl(*xs, **params))(*args)


def _map_aval(*args, jaxpr, clients, placement, remat, name):
    del args, remat, name
    axis = mesh_axis(placement, clients)
    return [add_leading(a, clients, axis) for a in jaxpr.out_avals], jaxpr.effects


def _map_jvp(primals, tangents, *, jaxpr, **params):
    live = [
        type(t) is not ad.Zero and jax.typeof(t).dtype != jax.dtypes.float0
        for t in tangents
    ]
    split = linearize(jaxpr, live, remat=bool(params["remat"]))
    outs = map_p.bind(*primals, jaxpr=split.fwd, **params)
    residuals = [primals[i] if is_in else outs[i] for is_in, i in split.residuals]
    tangents = pick(split.used_tangents, pick(live, tangents))
    dys = map_p.bind(*residuals, *tangents, jaxpr=split.lin, **params)
    outs = outs[: len(jaxpr.out_avals)]
    still = skip(split.live_outputs, outs)
    zeros = [ad.Zero(jax.typeof(y).to_tangent_aval()) for y in still]
    return outs, merge(split.live_outputs, dys, zeros)


def _map_transpose(cts, *args, jaxpr, **params):
    linear = [ad.is_undefined_primal(x) for x in args]
    live = [type(ct) is not ad.Zero for ct in cts]
    turned, used, live_in = transpose(jaxpr, linear, live)
    operands = pick(used, [*skip(linear, args), *pick(live, cts)])
    outs = map_p.bind(*operands, jaxpr=turned, **params)
    unknown = pick(linear, args)
    zeros = [ad.Zero(x.aval.to_ct_aval()) for x in skip(live_in, unknown)]
    return merge(linear, merge(live_in, outs, zeros), [None] * linear.count(False))


def _map_batch(args, dims, *, jaxpr, **params):
    batched = [d is not None for d in dims]
    args = [  # per client the batch axis leads: [n, b, *s]
        x if d is None else jnp.moveaxis(x, d, 1)
        for x, d in zip(args, dims, strict=True)
    ]
    avals = [drop_leading(jax.typeof(x)) for x in args]
    jaxpr, out_batched = batch(jaxpr, batched, avals)
    outs = map_p.bind(*args, jaxpr=jaxpr, **params)
    return outs, [1 if b else None for b in out_batched]


def _map_dce(used_outputs, eqn):
    if not any(used_outputs) and not eqn.params["jaxpr"].effects:
        return [False] * len(eqn.invars), None
    jaxpr, used = dce(eqn.params["jaxpr"], used_outputs)
    new = eqn.replace(
        invars=pick(used, eqn.invars),
        outvars=pick(used_outputs, eqn.outvars),
        params={**eqn.params, "jaxpr": jaxpr},
    )
    return used, new


map_p.def_impl(_map_eager)
map_p.def_effectful_abstract_eval(_map_aval)
mlir.register_lowering(map_p, mlir.lower_fun(_map_impl, multiple_results=True))
ad.primitive_jvps[map_p] = _map_jvp
ad.primitive_transposes[map_p] = _map_transpose
batching.primitive_batchers[map_p] = _map_batch
register_dce(map_p, _map_dce)


# ------------------------------------------------------------------------------------
# public function
# ------------------------------------------------------------------------------------


def map(
    fn: Callable[..., Any], *args: Any, remat: bool | None = None
) -> AtClients[Any]:
    """Run ``fn`` at every client, on that client's values.

    ``fn`` sees one client's slices, ``args: [n, *s] -> [*s]``, and what it returns is
    stacked again, ``[*t] -> [n, *t]``. Server values that ``fn`` closes over are found
    and sent by an explicit broadcast, so that the communication cost and the derivative
    see them. The tangent is a map of ``fn``'s linearisation, the transpose a map of its
    transpose; neither communicates.

    Args:
        fn: One client's work, traceable by JAX.
        *args: Client values (pytrees may hold several).
        remat: Recompute ``fn`` in a derivative from the client's own inputs instead of
            keeping its intermediate values; None leaves it to the mode (``fad.grad``),
            and keeps them elsewhere. Under ``fad.jit`` None recomputes what a later
            round needs, and False keeps it.

    Returns:
        ``AtClients`` of the structure that ``fn`` returns.

    Raises:
        PlacementError: If an argument is a server value, the number of clients
            differs, ``fn`` returns something that is no array, or outside a program.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> @fad.program
        ... def loss(w, data):
        ...     per_client = fad.map(lambda x, y: (w * x - y) ** 2, *data)
        ...     return fad.mean(per_client)
        >>> data = fad.AtClients((jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0])))
        >>> loss(1.0, data), jax.grad(loss)(1.0, data)
        (Array(2.5, dtype=float32), Array(-5., dtype=float32))
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    call = f"fad.map({name}, ...)"
    n = ambient_clients(call)
    named, treedef = client_leaves(call, "args", args)
    closed, out_tree = _trace(call, fn, treedef, [x for _, x in named])
    closed, closed_over = hoist_constants(closed)
    closed, used = dce(closed, [True] * len(closed.out_avals))
    sent = [
        broadcast_p.bind(server_array(c), clients=n, placement=CLIENTS)
        for c in pick(used[: len(closed_over)], closed_over)
    ]
    own = pick(used[len(closed_over) :], [x for _, x in named])
    outs = map_p.bind(
        *sent,
        *own,
        jaxpr=closed,
        clients=n,
        placement=CLIENTS,
        remat=ambient_remat() if remat is None else remat,
        name=name,
    )
    return AtClients.tree_unflatten(None, (out_tree.unflatten(outs),))


def _trace(
    call: str, fn: Callable, treedef: Any, arrays: list[Any]
) -> tuple[ClosedJaxpr, Any]:
    structure = []

    def work(*leaves):
        with clients_in_scope(None):
            out = fn(*treedef.unflatten(leaves))
        found, out_tree = jax.tree_util.tree_flatten_with_path(
            out, is_leaf=is_at_clients
        )
        for path, leaf in found:
            _check_output(call, path_str("output", path), leaf)
        structure.append(out_tree)
        return [jnp.asarray(leaf) for _, leaf in found]

    closed = make_jaxpr(work, [drop_leading(jax.typeof(x)) for x in arrays])
    return closed, structure[-1]


def _check_output(call: str, path: str, x: Any) -> None:
    if is_at_clients(x):
        raise PlacementError(
            f"{call}: {path} is a client value of the program around it, {x!r}. One "
            "client cannot return all clients' values: pass it to fad.map as an "
            "argument, so that each client gets its own."
        )
    if not is_arraylike(x):
        raise PlacementError(
            f"{call}: {path} is {describe(x)}; expected arrays or numbers. Return "
            "arrays only, and keep names and options outside the function."
        )
