"""Sharded clients: the same numbers on every mesh, and no client data gathered."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fad
from tests import rounds
from tests.subjects import MESHES, assert_same, on_mesh

SHARDED = [name for name in MESHES if name != "none"]
BY_CLIENTS = [name for name in SHARDED if "clients" in name]
meshes = pytest.mark.parametrize("mesh", SHARDED)


def _everything(params, server_lr, client_lr, data, weights):
    """Return value, gradients, a Hessian and a batch of one round."""
    args = params, server_lr, client_lr, data, weights
    by_lr = lambda s: rounds.one_round(params, s, *args[2:])  # noqa: E731
    value, grads = jax.value_and_grad(rounds.one_round, rounds.ALL)(*args)
    hessian = jax.hessian(by_lr)(server_lr)
    batch = jax.vmap(by_lr)(server_lr * jnp.ones(3))
    return value, grads, hessian, batch


@pytest.fixture(scope="module")
def expected():
    return jax.jit(_everything)(*rounds.make_args())


@meshes
def test_a_round_gives_the_same_numbers(mesh, expected):
    args = rounds.make_args()
    with on_mesh(mesh):
        actual = jax.jit(_everything)(*args)
    assert_same(actual, expected, tol=1e-6)


@meshes
def test_an_eager_round_gives_the_same_numbers(mesh, expected):
    args = rounds.make_args()
    with on_mesh(mesh):
        assert_same(rounds.one_round(*args), expected[0], tol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mesh", BY_CLIENTS)
def test_training_on_sharded_clients(mesh):
    args = rounds.make_args()
    by = jax.grad(rounds.train, (1, 2))
    plain = jax.jit(jax.grad(rounds.plain_train, (1, 2)))(*args)
    with on_mesh(mesh):
        assert_same(jax.jit(by)(*args), plain, tol=1e-6)


@pytest.mark.parametrize("mesh", BY_CLIENTS)
@pytest.mark.parametrize(
    "fn", [rounds.one_round, jax.grad(rounds.one_round, (0, 1, 2))]
)
def test_no_client_data_is_gathered(mesh, fn):
    args = rounds.make_args()
    with on_mesh(mesh):
        text = str(jax.jit(fn).lower(*args).compile().as_text())
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "all-reduce" in text


@pytest.mark.parametrize("mesh", BY_CLIENTS)
def test_client_values_stay_on_their_devices(mesh):
    work = jax.jit(fad.program(lambda d: fad.map(jnp.sin, d)))
    sent = jax.jit(fad.program(fad.broadcast, clients=8))
    with on_mesh(mesh):
        for out in (work(fad.AtClients(jnp.ones((8, 3)))), sent(jnp.ones(3))):
            assert tuple(out.unsafe_gather().sharding.spec)[:1] == ("clients",)


@meshes
def test_a_number_of_clients_that_the_mesh_does_not_divide(mesh):
    data = jnp.arange(6.0).reshape(3, 2)
    program = fad.program(lambda w, d: fad.sum(fad.map(lambda v: jnp.sin(w * v), d)))
    with on_mesh(mesh):
        args = jnp.ones(2), fad.AtClients(data)
        total = lambda *a: program(*a).sum()  # noqa: E731
        actual = jax.jit(jax.value_and_grad(total))(*args)
    plain = lambda w: jnp.sin(w[None] * data).sum()  # noqa: E731
    assert_same(actual, jax.value_and_grad(plain)(jnp.ones(2)), tol=1e-6)


@pytest.mark.parametrize("mesh", ["explicit_clients", "explicit_clients_model"])
def test_explicitly_sharded_client_data(mesh):
    data = jnp.arange(8.0).reshape(4, 2)
    program = fad.program(lambda d: fad.sum(fad.map(jnp.sin, d)))
    with on_mesh(mesh):
        sharded = jax.reshard(data, PartitionSpec("clients"))
        actual = jax.jit(program)(fad.AtClients(sharded))
        total = lambda d: program(d).sum()  # noqa: E731
        gradient = jax.jit(jax.grad(total))(fad.AtClients(sharded))
    assert_same(actual, jnp.sin(data).sum(0), tol=1e-6)
    assert_same(gradient, jnp.cos(data), tol=1e-6)


def test_a_model_sharded_over_its_own_axis():
    weights = jnp.arange(8.0).reshape(2, 4)
    data = jnp.arange(8.0).reshape(4, 2)

    @fad.program
    def program(w, d):
        return fad.sum(fad.map(lambda p, v: v @ p, fad.broadcast(w), d))

    total = lambda *a: jnp.sum(program(*a) ** 2)  # noqa: E731
    expected = jax.grad(lambda w: jnp.sum((data @ w).sum(0) ** 2))(weights)
    with on_mesh("explicit_clients_model"):
        sharded = jax.reshard(weights, PartitionSpec(None, "model"))
        out = jax.jit(jax.grad(total))(sharded, fad.AtClients(data))
        assert tuple(out.sharding.spec) == (None, "model")
    assert_same(out, expected, tol=1e-6)


def test_a_server_value_split_over_clients_is_sent_whole():
    with on_mesh("explicit_clients"):
        sharded = jax.reshard(jnp.arange(4.0), PartitionSpec("clients"))
        out = jax.jit(fad.program(lambda x: fad.sum(fad.broadcast(x)), clients=4))(
            sharded
        )
    assert_same(out, 4 * jnp.arange(4.0))


def test_mixed_axis_types():
    types = (AxisType.Explicit, AxisType.Auto)
    mesh = jax.make_mesh((4, 2), ("clients", "model"), axis_types=types)
    args = rounds.make_args()
    expected = jax.jit(rounds.one_round)(*args)
    with jax.set_mesh(mesh):
        assert_same(jax.jit(rounds.one_round)(*args), expected, tol=1e-6)


def test_placed_inputs_without_a_mesh_in_context():
    mesh = jax.make_mesh((4,), ("clients",), axis_types=(AxisType.Auto,))
    data = jax.device_put(
        jnp.arange(4.0), NamedSharding(mesh, PartitionSpec("clients"))
    )
    assert jax.jit(fad.program(fad.sum))(fad.AtClients(data)) == 6


def test_clients_split_over_another_axis_are_refused():
    with on_mesh("explicit_clients_model"):
        data = jax.reshard(jnp.arange(4.0), PartitionSpec("model"))
        with pytest.raises(
            fad.PlacementError, match=r"of x is split over the mesh axis 'model'"
        ):
            fad.program(fad.sum)(fad.AtClients(data))


# ---- slices --------------------------------------------------------------------------


def _slices():
    """Return a round over slices, and its arguments; some keys are -1."""
    keys = jnp.array([[0, 5, 2], [2, 1, -1], [-1, -1, -1], [5, 4, 0]] * 2)
    data = 0.1 * jnp.arange(16.0).reshape(8, 2)

    @fad.program
    def run(x, keys, data):
        mine = fad.select(x, keys, public=True)
        new = fad.map(lambda p, d: p - jnp.sin(p * d.sum()), mine, data)
        return new, fad.coverage_mean(new, keys, x, public=True)

    def total(x, keys, data):
        new, (mean, weight) = run(x, keys, data)
        return jnp.sum(mean**2), (new.unsafe_gather(), mean, weight)

    x = jnp.linspace(0.0, 1.0, 24).reshape(6, 4)
    args = x, fad.AtClients(keys), fad.AtClients(data)
    return jax.value_and_grad(total, has_aux=True), args


@meshes
def test_slices_stay_on_their_clients_devices(mesh):
    fn, args = _slices()
    want = jax.jit(fn)(*args)
    with on_mesh(mesh):
        run = jax.jit(fn).lower(*args).compile()
        actual = run(*args)
        text = str(run.as_text())
    assert_same(jax.device_get(actual), jax.device_get(want), tol=1e-6)
    (_, (new, *at_server)), gradient = actual
    if mesh in BY_CLIENTS:
        assert tuple(new.sharding.spec)[:1] == ("clients",)
        assert "all-gather" not in text
        assert "all-to-all" not in text
        assert "all-reduce" in text
    for x in (*at_server, gradient):
        assert set(x.sharding.spec) <= {None}


@pytest.mark.parametrize("spec", [(None, "model"), ("model", None)])
def test_slices_of_a_model_sharded_over_its_own_axis(spec):
    fn, (x, *rest) = _slices()
    want = jax.jit(fn)(x, *rest)
    with on_mesh("explicit_clients_model"):
        sharded = jax.reshard(x, PartitionSpec(*spec))
        actual = jax.jit(fn)(sharded, *rest)
        (_, (_, *at_server)), gradient = actual
        for out in (*at_server, gradient):
            assert tuple(out.sharding.spec) == spec
    assert_same(jax.device_get(actual), jax.device_get(want), tol=1e-6)
