"""Programs that leak, each by another trick, and the equation that gives them away.

Every one takes ``(w, data)`` of ``ARGS`` and hands a client value to the server, to a
host or to other clients otherwise than by ``fad.sum``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import io_callback

import fad

N, D = 4, 3
ARGS = (
    jnp.ones(D),
    fad.AtClients(
        {
            "x": jnp.ones((N, D)),
            "y": jnp.ones(N),
            "square": jnp.ones((N, N)),
            "nested": fad.AtClients(jnp.ones((N, 2))),
        }
    ),
)


class Leak(NamedTuple):
    fn: Callable
    primitive: str


LEAKS: dict[str, Leak] = {}


def leak(primitive: str) -> Callable:
    """Enter a program that is to be caught at this primitive."""

    def enter(fn):
        program = fad.program(fn)
        LEAKS[fn.__name__] = Leak(program, primitive)
        return program

    return enter


def honest(w: Any, data: Any) -> Any:
    """Return a server value that is honestly come by."""
    return fad.mean(fad.map(lambda v: jnp.sum(w * v), data["x"]))


# ------------------------------------------------------------------------------------
# picking clients
# ------------------------------------------------------------------------------------


@leak("slice")
def picks_the_first_client(w, data):
    return w + data["x"].unsafe_gather()[0]


@leak("dynamic_slice")
def picks_a_client_by_a_server_value(w, data):
    return data["y"].unsafe_gather()[jnp.argmax(w)]


@leak("gather")
def picks_some_clients(w, data):
    return data["x"].unsafe_gather()[jnp.array([0, 2])] * w[None]


@leak("split")
def splits_the_clients(w, data):
    half, _ = jnp.split(data["x"].unsafe_gather(), 2)
    return w, fad.AtClients(half)


@leak("scan")
def goes_through_the_clients(w, data):
    x = data["x"].unsafe_gather()
    return jax.lax.scan(lambda total, v: (total + v, None), w, x)[0]


@leak("scan")
def maps_over_the_clients_at_the_server(w, data):
    return jax.lax.map(lambda v: jnp.dot(w, v), data["x"].unsafe_gather())


# ------------------------------------------------------------------------------------
# reducing over clients
# ------------------------------------------------------------------------------------


@leak("reduce_sum")
def sums_without_fad(w, data):
    return w * data["x"].unsafe_gather().sum()


@leak("reduce_max")
def takes_the_maximum(w, data):
    return w + jnp.max(data["x"].unsafe_gather(), axis=0)


@leak("reduce_min")
def disguises_the_values_first(w, data):
    scaled = jax.tree.map(lambda v: jnp.tanh(2 * v) + 1, data["y"])
    return w * jnp.min(scaled.unsafe_gather())


@leak("argmax")
def finds_the_best_client(w, data):
    return w, jnp.argmax(data["y"].unsafe_gather())


@leak("sort")
def sorts_the_clients(w, data):
    return w, fad.AtClients(jnp.sort(data["y"].unsafe_gather()))


@leak("cumsum")
def accumulates_over_the_clients(w, data):
    return w, fad.AtClients(jnp.cumsum(data["y"].unsafe_gather()))


@leak("dot_general")
def weighs_at_the_server(w, data):
    return w + jnp.tensordot(data["y"].unsafe_gather(), data["x"].unsafe_gather(), 1)


@leak("psum")
def sums_by_a_named_axis(w, data):
    total = jax.vmap(lambda v: jax.lax.psum(v, "clients"), axis_name="clients")
    return w * total(data["y"].unsafe_gather())[0]


@leak("scatter-add")
def sums_into_segments(w, data):
    groups = jnp.array([0, 0, 1, 1])
    return w, jax.ops.segment_sum(data["y"].unsafe_gather(), groups, num_segments=2)


# ------------------------------------------------------------------------------------
# hiding the client axis
# ------------------------------------------------------------------------------------


@leak("reshape")
def flattens_the_clients(w, data):
    return w, data["x"].unsafe_gather().reshape(-1)


@leak("fad_map")
def passes_the_transpose_to_the_clients(w, data):
    turned = fad.AtClients(data["square"].unsafe_gather().T)
    return w * fad.mean(fad.map(jnp.max, turned))


@leak("fad_sum")
def sums_the_wrong_axis(w, data):
    return w, fad.sum(fad.AtClients(data["square"].unsafe_gather().T))


@leak("concatenate")
def appends_server_rows(w, data):
    return w, jnp.concatenate([data["x"].unsafe_gather(), w[None]])


@leak("rev")
def reverses_the_clients(w, data):
    return w, fad.AtClients(jnp.flip(data["y"].unsafe_gather(), 0))


@leak("pad")
def pads_the_clients(w, data):
    return w, jnp.pad(data["y"].unsafe_gather(), (0, 1))


@leak("scatter")
def writes_the_clients_into_a_buffer(w, data):
    rows = jnp.array([3, 1, 0, 2])
    return w, jnp.zeros((6, D)).at[rows].set(data["x"].unsafe_gather())


@leak("dynamic_update_slice")
def writes_into_a_longer_buffer(w, data):
    start = jnp.argmax(w)
    y = data["y"].unsafe_gather()
    return w, jax.lax.dynamic_update_slice(jnp.zeros(9), y, (start,))


@leak("sub")
def compares_all_pairs(w, data):
    y = data["y"].unsafe_gather()
    return w, fad.AtClients(y[:, None] - y[None, :])


@leak("dot_general")
def computes_the_gram_matrix(w, data):
    x = data["x"].unsafe_gather()
    return w, fad.AtClients(x @ x.T)


@leak("fft")
def uses_a_primitive_without_a_rule(w, data):
    return w, fad.AtClients(jnp.fft.fft(data["y"].unsafe_gather()))


# ------------------------------------------------------------------------------------
# deciding by client values
# ------------------------------------------------------------------------------------


@leak("reduce_or")
def branches_on_a_client_value(w, data):
    found = jnp.any(data["y"].unsafe_gather() > 0)
    return jax.lax.cond(found, lambda v: v, lambda v: 2 * v, w)


@leak("reduce_max")
def loops_on_a_client_value(w, data):
    y = data["y"].unsafe_gather()
    return jax.lax.while_loop(lambda v: v.sum() < y.max(), lambda v: 2 * v, w)


@leak("gather")
def selects_a_client_in_a_branch(w, data):
    x = data["x"].unsafe_gather()
    row = jnp.argmax(w)
    return jax.lax.cond(w.sum() > 0, lambda: jnp.take(x, row, 0), lambda: w)


# ------------------------------------------------------------------------------------
# sending and returning
# ------------------------------------------------------------------------------------


@leak("fad_broadcast")
def closes_a_map_over_client_values(w, data):
    x = data["x"].unsafe_gather()
    return w * fad.mean(fad.map(lambda v: jnp.sum(x @ v), data["x"]))


@leak("fad_broadcast")
def broadcasts_client_values(w, data):
    sent = fad.broadcast(data["x"].unsafe_gather())
    return w * fad.mean(fad.map(jnp.sum, sent))


@leak("return")
def returns_client_values(w, data):
    local = fad.map(lambda v: jnp.dot(v, w), data["x"])
    return w, {"losses": local.unsafe_gather()}


@leak("return")
def returns_an_argument(w, data):
    return w, data["y"].unsafe_gather()


# ------------------------------------------------------------------------------------
# hosts
# ------------------------------------------------------------------------------------


@leak("pure_callback")
def calls_back_from_the_server(w, data):
    y = data["y"].unsafe_gather()
    return w * jax.pure_callback(lambda v: v.sum(), jax.ShapeDtypeStruct((), "f4"), y)


@leak("pure_callback")
def calls_back_from_a_client(w, data):
    def work(v):
        return jax.pure_callback(lambda u: u, jax.ShapeDtypeStruct((D,), "f4"), v)

    return w * fad.mean(fad.map(work, data["x"]))


@leak("io_callback")
def writes_from_a_client(w, data):
    def work(v):
        io_callback(lambda u: None, None, v)
        return v

    return w * fad.mean(fad.map(work, data["x"]))


@leak("debug_callback")
def debugs_from_a_loop_of_a_client(w, data):
    def work(v):
        def step(c, _):
            jax.debug.callback(lambda u: None, c)
            return 2 * c, None

        return jax.lax.scan(step, v, None, length=2)[0]

    return w * fad.mean(fad.map(work, data["x"]))


@leak("debug_print")
def prints_client_values(w, data):
    jax.debug.print("{}", data["y"].unsafe_gather())
    return w * honest(w, data)


@leak("device_put")
def moves_to_another_device(w, data):
    y = jax.device_put(data["y"].unsafe_gather(), jax.devices()[0])
    return w, fad.AtClients(y)


# ------------------------------------------------------------------------------------
# hiding the equation
# ------------------------------------------------------------------------------------


@leak("reduce_sum")
def hides_in_calls(w, data):
    total = jax.checkpoint(jax.jit(lambda v: jnp.linalg.norm(v)))
    return w * jax.jit(lambda d: total(d["x"].unsafe_gather()))(data)


@leak("reduce_sum")
def hides_in_a_custom_jvp(w, data):
    @jax.custom_jvp
    def total(v):
        return v.sum()

    total.defjvp(lambda primals, tangents: (total(*primals), tangents[0].sum()))
    return w * total(data["y"].unsafe_gather())


@leak("reduce_sum")
def hides_in_a_custom_vjp(w, data):
    @jax.custom_vjp
    def total(v):
        return v.sum()

    total.defvjp(lambda v: (v.sum(), None), lambda _, ct: (jnp.full(N, ct),))
    return w * total(data["y"].unsafe_gather())


@leak("reduce_sum")
def comes_through_a_carry(w, data):
    """In the second round only: the carry starts as a server value."""

    def body(carry, _):
        seen, last = carry
        return (seen + last.sum(), data["y"].unsafe_gather()), None

    return w * jax.lax.scan(body, (0.0, jnp.zeros(N)), None, length=2)[0][0]


@leak("reduce_sum")
def comes_through_a_while_carry(w, data):
    def body(carry):
        i, seen, last = carry
        return i + 1, seen + last.sum(), data["y"].unsafe_gather()

    start = 0, 0.0, jnp.zeros(N)
    return w * jax.lax.while_loop(lambda c: c[0] < 2, body, start)[1]


@leak("reduce_sum")
def comes_through_one_branch(w, data):
    y = data["y"].unsafe_gather()
    return w * jax.lax.cond(w[0] > 0, lambda: y, lambda: jnp.zeros(N)).sum()


@leak("reduce_sum")
def comes_from_client_state(w, data):
    def body(state, _):
        state = fad.map(lambda s, v: 0.5 * s + v, state, data["y"])
        return state, fad.mean(state)

    state, means = jax.lax.scan(body, fad.broadcast(0.0), None, length=2)
    return w * means.sum() + state.unsafe_gather().sum()


@leak("reduce_max")
def leaks_one_cohort_of_many(w, data):
    """The client axis of what is scanned over is the second one."""
    cohorts = fad.AtClients(jnp.stack([data["x"].unsafe_gather()] * 2))

    def body(c, cohort):
        return c + honest(c, {"x": cohort}), cohort.unsafe_gather().max()

    return jax.lax.scan(body, w, cohorts)


@leak("dot_general")
def solves_with_client_values(w, data):
    x = data["x"].unsafe_gather()
    return jax.scipy.sparse.linalg.cg(lambda v: v + x.T @ (x @ v), w)[0]


@leak("reduce_max")
def leaks_inside_a_clients_own_program(w, data):
    """A nested federation: the inner clients leak to the outer one."""

    @fad.program
    def inner(own):
        return fad.mean(fad.map(jnp.sin, own)) + own.unsafe_gather().max()

    return w * fad.mean(fad.map(inner, data["nested"]))


@jax.custom_vjp
def _passes_backwards(x):
    return x


_passes_backwards.defvjp(
    lambda x: (x, None), lambda _, ct: (jnp.full_like(ct, ct.sum()),)
)


@fad.program
def leaks_in_its_derivative_only(w, data):
    """Honest as it stands; a custom rule gives its gradient away."""
    local = fad.map(lambda v: jnp.dot(v, w), data["x"])
    return fad.sum(fad.AtClients(_passes_backwards(local.unsafe_gather())))
