"""Linear solves by federated products: streamed, derivatives included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.compile.programs import CLIENTS, check_same, make_data, make_weights
from tests.subjects import assert_same

pytestmark = pytest.mark.usefixtures("x64")

SIZE = 3


def richardson(matvec, b, terms=30):
    step = lambda x, _: (x + 0.5 * (b - matvec(x)), None)  # noqa: E731
    return jax.lax.scan(step, b, length=terms)[0]


@fad.program
def solve(b, scale, data, weights, *, symmetric=False):
    """Solve with the clients' weighted mean of x'x + 1, or of a skewed one."""

    def client(v, x, scale):
        skewed = v if symmetric else v + 0.3 * jnp.roll(v, 1)
        return scale * x.T @ (x @ v) / len(x) + skewed

    def mean(v):
        v = fad.broadcast(v)
        out = fad.map(lambda v, d: client(v, d["x"], scale), v, data)
        return fad.weighted_mean(out, weights)

    def matvec(v):
        return jax.jvp(mean, (b,), (v,))[1]

    return jax.lax.custom_linear_solve(
        matvec, b, richardson, richardson, symmetric=symmetric
    )


def loss(*args, **options):
    return jnp.sum(jnp.sin(solve(*args, **options)))


def arguments():
    return jnp.ones(SIZE), jnp.asarray(np.float64(0.2)), make_data(), make_weights()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "derive",
    [
        lambda f: f,
        lambda f: jax.grad(f, (0, 1, 2, 3)),
        lambda f: jax.jacfwd(jax.grad(f, 1), (0, 1)),
    ],
    ids=["value", "gradient", "second"],
)
def test_values_and_derivatives(derive, symmetric):
    run = derive(lambda *args: loss(*args, symmetric=symmetric))
    check_same(run, *arguments(), chunks=(3,), tol=1e-10)


def test_all_products_are_swept():
    run = jax.grad(lambda *args: loss(*args, symmetric=True), (0, 1))
    report = fad.jit(run, chunk=3).explain(*arguments())
    assert not report.unstreamed
    assert {s.clients for s in report.sweeps} == {CLIENTS}
    assert sum("a scan of 30" in s.where for s in report.sweeps) == 2
    assert not any(s.stored for s in report.sweeps if s.where)


def test_client_data_from_the_host():
    b, scale, data, weights = arguments()
    both = {"data": data.unsafe_gather(), "weights": weights.unsafe_gather()}
    parts = [
        jax.tree.map(lambda v, i=i: v[i : i + 2], both) for i in range(0, CLIENTS, 2)
    ]
    run = jax.grad(lambda s, b, own: loss(b, s, own["data"], own["weights"]))
    found = fad.jit(run)(scale, b, fad.stream(parts))
    assert_same(found, run(scale, b, fad.AtClients(both)), tol=1e-10)


def test_clients_over_a_mesh():
    mesh = jax.make_mesh((2,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    run = jax.grad(loss, (0, 1))
    found = fad.jit(run, chunk=1, mesh=mesh)(*arguments())
    assert_same(jax.device_get(found), jax.jit(run)(*arguments()), tol=1e-10)
