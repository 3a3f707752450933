"""Mixed mode, second form: the last round's clients return products, not a gradient.

The last round sends the tangents down with the values, as forward mode does. Each
client takes its gradient once, in reverse, and returns its products with the ``k``
tangents: the uplink is ``k`` numbers more, and the client's arithmetic hardly grows
with ``k``. Compared to ``"mixed"``, less is sent up and more is sent down.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fad._compat import JaxprEqn
from fad._errors import PlanError
from fad.modes._arguments import Problem
from fad.modes._basis import basis, columns, is_real, split_rows
from fad.modes._last_round import LastRound, last_round
from fad.modes.mixed import split
from fad.placement import AtClients, program
from fad.primitives import map as fad_map
from fad.primitives._client_work import merge, pick, skip


def jacobian(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return the value, the Jacobian per output and argument, and the auxiliary.

    Raises:
        PlanError: If the last round cannot be separated, or is more than maps and sums.
    """
    halves, x, inputs, structure = split(task, remat)
    rows_x = basis(x)

    def push(t):
        return jax.jvp(lambda *x: halves.before(inputs(x)), x, t)

    crossed, rows = jax.vmap(push, out_axes=(None, 0))(rows_x)
    invars = halves.closed.jaxpr.invars
    values = dict(zip(invars, inputs(x), strict=True))
    values.update(zip(halves.closed.jaxpr.constvars, halves.closed.consts, strict=True))
    values.update(zip(halves.crossing, crossed, strict=True))
    tangents = dict(zip(invars[: len(x)], rows_x, strict=True))
    moving = [m and is_real(c) for m, c in zip(halves.moving, crossed, strict=True)]
    tangents.update(zip(pick(moving, halves.crossing), pick(moving, rows), strict=True))
    last = last_round(halves)
    if any(v in tangents for v in last.own):
        raise PlanError(
            f"{task.name}: mode='mixed-products' cannot differentiate by a client "
            "value that the last round reads: its tangents are not the server's to "
            "send. Use mode='reverse' or mode='mixed'."
        )
    totals, total_rows = _send_products(last, values, tangents)
    results = [e.outvars[0] for e in last.sums]
    values.update(zip(results, totals, strict=True))
    real_sums = [v for v in results if is_real(v.aval)]
    tangents.update(zip(real_sums, total_rows, strict=True))
    outs, out_rows = _finish(last, values, tangents)
    value, aux = jax.tree.unflatten(structure[0], outs)
    value_rows, _ = jax.tree.unflatten(structure[0], out_rows)
    return value, jax.tree.map(lambda r: columns(r, task.chosen), value_rows), aux


def _send_products(
    last: LastRound, values: dict[Any, Any], tangents: dict[Any, Any]
) -> tuple[list[Any], list[Any]]:
    """Run the last round; return its sums and their tangents, ``[k, *s]``."""
    sent = [values[v] for v in last.sent]
    own = AtClients.tree_unflatten(None, ([values[v] for v in last.own],))
    moves = [v in tangents for v in last.sent]
    rows = [tangents[v] for v in last.sent if v in tangents]
    count = len(next(iter(tangents.values())))
    real = [is_real(e.invars[0].aval) for e in last.sums]

    def client(own):
        def of(*moved):
            given = iter(moved)
            full = [next(given) if m else s for m, s in zip(moves, sent, strict=True)]
            found = last.work(full, own)
            out, keys = [x for x, *_ in found], [at for _, *at in found]
            return pick(real, out), (skip(real, out), keys)

        out, pull, (rest, keys) = jax.vjp(of, *pick(moves, sent), has_aux=True)
        gradients = jax.vmap(pull)(basis(out))  # [outputs, *s] by what was sent
        tangents = _products(gradients, rows, out, count)
        return merge(real, out, rest), tangents, keys

    def run(own: Any) -> tuple[list[Any], list[Any]]:
        outs, out_rows, made = fad_map(client, own).unsafe_gather()
        keys = [
            [values.get(v, k) for v, k in zip(e.invars[1:], at, strict=True)]
            for e, at in zip(last.sums, made, strict=True)
        ]
        totals = [
            e.primitive.bind(x, *at, **e.params)
            for e, x, at in zip(last.sums, outs, keys, strict=True)
        ]
        moved = zip(pick(real, last.sums), out_rows, pick(real, keys), strict=True)
        return totals, [_sum_rows(*m) for m in moved]

    return program(run, clients=last.clients)(own)


def _products(
    gradients: Sequence[jax.Array], rows: Sequence[Any], out: Sequence[Any], count: int
) -> list[jax.Array]:
    """Return the outputs' tangents ``[k, *s]`` for k tangents of what was sent."""
    products: Any = jnp.zeros((sum(o.size for o in out), count))
    for gradient, row in zip(gradients, rows, strict=True):
        product = gradient.reshape(len(gradient), -1) @ row.reshape(count, -1).T
        products = products.astype(product.dtype) + product
    by_output = split_rows(products, out)  # [*o, k]
    return [
        jnp.moveaxis(p, -1, 0).astype(o.dtype)
        for p, o in zip(by_output, out, strict=True)
    ]


def _sum_rows(eqn: JaxprEqn, rows: Any, keys: Sequence[Any]) -> Any:
    """Add tangents up as an equation adds values, ``[n, k, *s] -> [k, *s]``."""
    params = {**eqn.params, "wire": None}  # they are not encoded
    return jax.vmap(lambda x: eqn.primitive.bind(x, *keys, **params), in_axes=1)(rows)


def _finish(
    last: LastRound, values: dict[Any, Any], tangents: dict[Any, Any]
) -> tuple[list[Any], list[Any]]:
    """Run what follows at the server in forward mode."""
    names = list(tangents)

    def of(moved: Sequence[Any]) -> list[Any]:
        return last.finish({**values, **dict(zip(names, moved, strict=True))})

    def push(t):
        return jax.jvp(of, ([values[v] for v in names],), (t,))

    return jax.vmap(push, out_axes=(None, 0))([tangents[v] for v in names])


def grad(task: Problem, *, remat: bool | None = None) -> tuple[Any, Any, Any]:
    """Return a scalar's value, its gradient, and the auxiliary."""
    return jacobian(task, remat=remat)
