"""Hard data for select, deselect and coverage_mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests import masks
from tests.subjects import assert_same

X = jnp.array([10.0, 20.0, 30.0])
select = jax.jit(fad.program(lambda x, keys: fad.select(x, keys)))
deselect = jax.jit(fad.program(lambda y, keys: fad.deselect(y, keys, X)))
coverage = jax.jit(fad.program(lambda y, keys, x: fad.coverage_mean(y, keys, x)))


@jax.jit
@fad.program
def weighted(y, keys, x, w):
    """The mean and the weights by coverage."""
    return fad.coverage_mean(y, keys, x, weights=w)


def _marked(*values):
    return [fad.AtClients(jnp.asarray(v)) for v in values]


# ------------------------------------------------------------------------------------
# keys
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int64"])
def test_keys_of_any_ints(dtype):
    with jax.enable_x64(dtype == "int64"):
        keys = fad.AtClients(jnp.asarray([[0, 100], [100, 2]], dtype))
        like = jnp.zeros(300)  # more than fit in 8 bits

        @jax.jit
        def there_and_back(x):
            both = lambda x: fad.deselect(fad.select(x, keys), keys, like)  # noqa: E731
            return fad.program(both, clients=2)(x)

        expected = like.at[jnp.array([0, 100, 2])].set(jnp.array([1.0, 2.0, 1.0]))
        assert_same(there_and_back(jnp.ones(300)), expected)


@pytest.mark.parametrize("key", [3, -2])
def test_a_traced_key_out_of_range_gives_nan(key):
    keys, y = _marked([[0, 1], [1, key]], [[1.0, 2.0], [4.0, 8.0]])
    sent = select(X, keys).unsafe_gather()
    np.testing.assert_array_equal(sent, [[10.0, 20.0], [20.0, np.nan]])
    assert jnp.isnan(deselect(y, keys)).all()
    assert jnp.isnan(coverage(y, keys, X).mean).all()


def test_a_traced_key_out_of_range_gives_zero_ints():
    keys, y = _marked([[0, 3]], [[5, 7]])
    assert select(jnp.array([1, 2, 3]), keys).unsafe_gather().tolist() == [[1, 0]]
    assert deselect(y, keys).tolist() == [0, 0, 0]


def test_of_a_block_what_nothing_names_is_zero():
    x = jnp.arange(1.0, 7).reshape(3, 2)
    rows, columns = _marked([[2, -1]], [[-1, 0]])
    block = fad.program(lambda x: fad.select(x, {0: rows, 1: columns}), clients=1)
    assert block(x).unsafe_gather().tolist() == [[[0.0, 5.0], [0.0, 0.0]]]


def test_one_set_of_keys_stands_for_a_subtree_and_none_for_the_whole():
    tree = {"a": {"w": X, "v": jnp.ones((3, 2))}, "b": X, "absent": None}
    keys = {"a": fad.AtClients(masks.ROWS), "b": None, "absent": None}
    sent = fad.program(fad.select)(tree, keys).unsafe_gather()
    assert sent["a"]["w"].shape == (4, 2)
    assert sent["a"]["v"].shape == (4, 2, 2)
    assert_same(sent["b"], jnp.tile(X, (4, 1)))
    assert sent["absent"] is None


def test_keys_that_clients_compute():
    @jax.jit
    @fad.program
    def largest(x, scores):
        keys = fad.map(lambda s: {"w": jax.lax.top_k(s, 2)[1]}, scores)
        return fad.select({"w": x}, keys)

    (scores,) = _marked([[0.0, 5.0, 3.0], [9.0, 0.0, 8.0]])
    out = largest(X, scores).unsafe_gather()
    assert out["w"].tolist() == [[20.0, 30.0], [10.0, 30.0]]


def test_no_keys_at_all():
    keys, y = _marked(jnp.zeros((2, 0), int), jnp.zeros((2, 0)))
    assert select(X, keys).unsafe_gather().shape == (2, 0)
    assert_same(deselect(y, keys), jnp.zeros(3))


# ------------------------------------------------------------------------------------
# coverage
# ------------------------------------------------------------------------------------


def test_one_client_is_followed_bit_for_bit():
    y = jax.random.normal(jax.random.key(0), (2, 2))
    keys, slices = _marked([[0, 1], [2, -1]], y)
    out = coverage(slices, keys, X)
    np.testing.assert_array_equal(out.mean, [y[0, 0], y[0, 1], y[1, 0]])
    np.testing.assert_array_equal(out.weight, [1.0, 1.0, 1.0])
    keys, slices, w = _marked([[0, 2]], y[:1], [0.5])
    out = weighted(slices, keys, X, w)
    np.testing.assert_array_equal(out.mean, [y[0, 0], 20.0, y[0, 1]])
    np.testing.assert_array_equal(out.weight, [0.5, 0.0, 0.5])


def test_what_no_client_has_does_not_move():
    y, w = [[1.0, 3.0], [jnp.nan, jnp.inf], [7.0, 5.0]], [2.0, 0.0, 1.0]
    keys = [[0, -1], [1, 2], [-1, 0]]  # the second client weighs nothing
    y, keys, w = _marked(y, keys, w)
    out, turn = jax.vjp(lambda x, y, w: weighted(y, keys, x, w), X, y, w)
    assert_same(out.mean, jnp.array([7 / 3, 20.0, 30.0]))
    assert_same(out.weight, jnp.array([3.0, 0.0, 0.0]))
    by_x, by_y, by_w = turn(fad.Coverage(jnp.ones(3), jnp.zeros(3)))
    assert_same(by_x, jnp.array([0.0, 1.0, 1.0]))
    assert_same(by_y, jnp.array([[2 / 3, 0.0], [0.0, 0.0], [0.0, 1 / 3]]))
    assert_same(by_w, jnp.array([-4 / 9, 0.0, 8 / 9]))


def test_what_fills_up_may_be_nan():
    (keys,) = _marked([[0, -1], [-1, 0]])
    y, w = _marked([[1.0, jnp.nan], [jnp.nan, 5.0]], [2.0, 1.0])
    assert_same(weighted(y, keys, X, w).mean, jnp.array([7 / 3, 20.0, 30.0]))


def test_empty_clients_alone():
    y, keys = _marked(jnp.full((2, 2), jnp.nan), [[-1, -1], [-1, -1]])
    out, turn = jax.vjp(lambda x, y: coverage(y, keys, x).mean, X, y)
    by_x, by_y = turn(jnp.ones(3))
    assert_same(out, X)
    assert_same(by_x, jnp.ones(3))
    assert_same(by_y, jnp.zeros((2, 2)))


@pytest.mark.usefixtures("x64")
def test_the_mean_is_that_of_whole_values_times_masks():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=3), rng.normal(size=(4, 2)), rng.uniform(size=4)
    keys = np.asarray(masks.ROWS)

    def plain(x, y, w):
        mask = (keys[..., None] == np.arange(3)).astype(float)  # [n, k, K]
        weight = jnp.einsum("n,nkK->K", w, mask)
        total = jnp.einsum("n,nk,nkK->K", w, y, mask)
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), x)

    slices, marked, weights = _marked(y, keys, w)
    program = lambda x, y, w: weighted(y, marked, x, w).mean  # noqa: E731
    x = jnp.asarray(x)
    by_all = jax.jit(jax.jacrev(program, (0, 1, 2)))(x, slices, weights)
    assert_same(program(x, slices, weights), plain(x, y, w), tol=1e-12)
    expected = jax.jacfwd(plain, (0, 1, 2))(x, jnp.asarray(y), jnp.asarray(w))
    assert_same(by_all, expected, tol=1e-12)


# ------------------------------------------------------------------------------------
# dtypes
# ------------------------------------------------------------------------------------


def test_half_precision_adds_up_in_single():
    ones = jnp.ones((300, 1), jnp.bfloat16)  # each 256 + 1 would be 256 again
    y, keys = _marked(ones, jnp.zeros((300, 1), int))
    x = jnp.zeros(3, jnp.bfloat16)
    assert deselect(y, keys)[0] == 300
    out = coverage(y, keys, x)
    assert (out.mean.dtype, out.weight.dtype) == (jnp.bfloat16, jnp.float32)
    assert (out.mean[0], out.weight[0]) == (1, 300)


def test_half_precision_travels_as_it_is():
    y, keys = _marked(jnp.ones((2, 1), jnp.bfloat16), [[0], [1]])
    x = jnp.zeros(3, jnp.bfloat16)
    jaxpr = jax.make_jaxpr(fad.program(fad.coverage_mean))(y, keys, x)
    sums = [e for e in jaxpr.eqns if e.primitive.name == "fad_deselect"]
    assert sums[0].invars[0].aval.dtype == jnp.bfloat16
    assert sums[1].params["wire"] == ()  # the server counts by itself


@pytest.mark.parametrize(("dtype", "total"), [("bool", "int32"), ("int8", "int32")])
def test_ints_and_bools_add_up_as_in_a_sum(dtype, total):
    y, keys = _marked(jnp.ones((2, 1), dtype), [[0], [0]])
    assert_same(deselect(y, keys), jnp.array([2, 0, 0], total))
    assert select(jnp.ones(3, dtype), keys).unsafe_gather().dtype == dtype
    assert_same(coverage(y, keys, jnp.zeros(3, dtype)).mean, jnp.array([1.0, 0, 0]))
