"""Laws that hold for every value."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import fad
from tests.subjects import assert_same

N = 4
laws = settings(derandomize=True, deadline=None, max_examples=20)
# Small integers: sums of them are exact in floats, so the laws hold to the last bit.
numbers = st.integers(-100, 100).map(float)


def arrays(*shape):
    size = int(np.prod(shape))
    lists = st.lists(numbers, min_size=size, max_size=size)
    return lists.map(lambda v: jnp.asarray(np.reshape(v, shape), jnp.float32))


client_arrays = arrays(N, 2)
_sum = jax.jit(fad.program(fad.sum))
_mean = jax.jit(fad.program(fad.mean))
_weighted_mean = jax.jit(fad.program(fad.weighted_mean))
_sum_of_broadcast = jax.jit(fad.program(lambda x: fad.sum(fad.broadcast(x)), clients=N))
_mean_of_broadcast = jax.jit(
    fad.program(lambda x: fad.mean(fad.broadcast(x)), clients=N)
)


_select = jax.jit(fad.program(lambda x, keys: fad.select(x, keys)))
_deselect = jax.jit(fad.program(lambda y, keys: fad.deselect(y, keys, jnp.zeros(3))))
_coverage = jax.jit(
    fad.program(lambda y, keys: fad.coverage_mean(y, keys, jnp.ones(3)))
)
# Two of three rows for each client, or one or none.
_two_rows = st.permutations([-1, -1, 0, 1, 2]).map(lambda order: order[:2])
keys_of_clients = st.lists(_two_rows, min_size=N, max_size=N).map(jnp.asarray)


def _first(v):
    return v * v - 1


def _second(v):
    return jnp.maximum(v, 3 * v)


_fused = jax.jit(fad.program(lambda d: fad.map(lambda v: _second(_first(v)), d)))
_unfused = jax.jit(fad.program(lambda d: fad.map(_second, fad.map(_first, d))))


@laws
@given(arrays(2))
def test_a_sum_of_a_broadcast_is_n_times_the_value(x):
    assert_same(_sum_of_broadcast(x), N * x)


@laws
@given(arrays(2))
def test_a_mean_of_a_broadcast_is_the_value(x):
    assert_same(_mean_of_broadcast(x), x)


@laws
@given(client_arrays, client_arrays)
def test_a_sum_is_linear(x, y):
    added = fad.AtClients(x + 2 * y)
    assert_same(_sum(added), _sum(fad.AtClients(x)) + 2 * _sum(fad.AtClients(y)), tol=0)


@laws
@given(client_arrays)
def test_maps_fuse(x):
    assert_same(_fused(fad.AtClients(x)), _unfused(fad.AtClients(x)), tol=0)


@laws
@given(client_arrays, st.permutations(range(N)))
def test_the_clients_order_does_not_matter(x, order):
    shuffled = x[jnp.asarray(order)]
    assert_same(_sum(fad.AtClients(shuffled)), _sum(fad.AtClients(x)), tol=0)
    mapped = _fused(fad.AtClients(x)).unsafe_gather()
    assert_same(_fused(fad.AtClients(shuffled)), mapped[jnp.asarray(order)], tol=0)


@laws
@given(client_arrays, st.permutations(range(N)))
def test_the_order_of_weighted_clients_does_not_matter(x, order):
    order = jnp.asarray(order)
    w = jnp.arange(1.0, N + 1)
    shuffled = _weighted_mean(fad.AtClients(x[order]), fad.AtClients(w[order]))
    assert_same(shuffled, _weighted_mean(fad.AtClients(x), fad.AtClients(w)))


@laws
@given(client_arrays, st.integers(1, 100))
def test_equal_weights_give_the_mean(x, weight):
    weights = fad.AtClients(jnp.full(N, float(weight)))
    assert_same(_weighted_mean(fad.AtClients(x), weights), _mean(fad.AtClients(x)))


@laws
@given(client_arrays, arrays(N))
def test_the_scale_of_the_weights_does_not_matter(x, w):
    w = jnp.abs(w) + 1
    scaled = _weighted_mean(fad.AtClients(x), fad.AtClients(8 * w))
    assert_same(scaled, _weighted_mean(fad.AtClients(x), fad.AtClients(w)))


@laws
@given(client_arrays, arrays(N))
def test_a_weighted_mean_lies_between_the_clients(x, w):
    out = _weighted_mean(fad.AtClients(x), fad.AtClients(jnp.abs(w) + 1))
    assert jnp.all(out >= x.min(0) - 1e-3)
    assert jnp.all(out <= x.max(0) + 1e-3)


@laws
@given(arrays(3), client_arrays, keys_of_clients)
def test_select_and_deselect_are_adjoint(x, y, keys):
    keys = fad.AtClients(keys)
    sent = _select(x, keys).unsafe_gather()
    assert jnp.vdot(sent, y) == jnp.vdot(x, _deselect(fad.AtClients(y), keys))


@laws
@given(client_arrays, keys_of_clients, st.permutations(range(N)))
def test_the_order_of_clients_and_of_keys_does_not_matter(y, keys, order):
    order = jnp.asarray(order)
    given_so = _coverage(fad.AtClients(y), fad.AtClients(keys))
    turned = fad.AtClients(y[order, ::-1]), fad.AtClients(keys[order, ::-1])
    assert_same(_coverage(*turned), given_so, tol=0)


@laws
@given(client_arrays)
def test_coverage_by_everyone_gives_the_mean(y):
    keys = fad.AtClients(jnp.tile(jnp.array([[2, 0]]), (N, 1)))
    mean = _mean(fad.AtClients(y))
    expected = jnp.array([mean[1], 1.0, mean[0]])
    assert_same(_coverage(fad.AtClients(y), keys).mean, expected, tol=0)
