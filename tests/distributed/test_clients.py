"""Clients' data over the mesh: whose rows lie where, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
import fad.distributed
from fad.distributed import ShardedClients


@pytest.fixture
def mesh():
    return fad.distributed.mesh()


def test_rows_lie_in_order_and_padding_repeats_a_client(mesh):
    data = {"x": np.arange(20.0, dtype=np.float32).reshape(10, 2), "y": np.arange(10)}
    got = fad.distributed.clients(fad.AtClients(data), mesh, n=10)
    assert got.num_clients == 10
    for name, x in data.items():
        array = got.tree[name]
        assert array.shape == (16, *x.shape[1:])
        assert array.sharding.spec == jax.sharding.PartitionSpec("clients")
        np.testing.assert_array_equal(array[:10], x)
        np.testing.assert_array_equal(array[10:], np.repeat(x[-1:], 6, axis=0))
    assert got.tree["y"].dtype == jnp.int32


def test_further_axes_hold_copies():
    both = fad.distributed.mesh(model=2)
    got = fad.distributed.clients(jnp.arange(6), both, n=6)
    assert got.tree.addressable_shards[0].data.shape == (2,)
    np.testing.assert_array_equal(got.tree[:6], np.arange(6))


def test_sharded_clients_are_a_pytree_whose_number_is_static(mesh):
    got = fad.distributed.clients([np.ones((9, 2))], mesh, n=9)
    doubled = jax.jit(lambda c: jax.tree.map(lambda x: 2 * x, c))(got)
    assert isinstance(doubled, ShardedClients)
    assert doubled.num_clients == 9
    assert doubled.tree[0].shape == (16, 2)
    assert repr(ShardedClients("tree", 9)) == "ShardedClients(9 clients in 'tree')"


def test_clients_that_the_mesh_divides_are_at_clients(mesh):
    got = fad.distributed.clients(np.ones((16, 2)), mesh, n=16).at_clients()
    assert isinstance(got, fad.AtClients)
    assert got.num_clients == 16


def test_padded_clients_are_no_at_clients(mesh):
    got = fad.distributed.clients(np.ones((9, 2)), mesh, n=9)
    expected = "the mesh does not divide 9 clients, so they are padded to 16 rows"
    with pytest.raises(fad.FadError, match=expected):
        got.at_clients()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({}, r"process 0: tree: has no arrays; expected leaves with a leading"),
        ({"x": 1.0}, r"tree\['x'\]: expected an array with a client axis, got float"),
        (np.float32(1), r"tree: expected an array with a client axis, got float32\[\]"),
        ([np.ones(9), np.ones(8)], r"tree\[0\] has 9 clients, tree\[1\] has 8\. Every"),
        (np.ones((7, 9)), r"process 0 gives 7 clients, expected 9, the clients 0:9\."),
    ],
)
def test_data_that_does_not_fit_is_refused(mesh, tree, expected):
    with pytest.raises(fad.FadError, match=rf"clients\(n=9\): .*{expected}"):
        fad.distributed.clients(tree, mesh, n=9)


def test_keys_are_refused(mesh):
    keys = jax.random.split(jax.random.key(0), 8)
    expected = r"tree: key<fry>\[8\] cannot be put together over processes\. Pass num"
    with pytest.raises(fad.FadError, match=expected):
        fad.distributed.clients(keys, mesh, n=8)


def test_no_process_holds_another_process_s_clients(session):
    first, second = (printed["rows"] for printed in session.printed)
    assert first == {
        "3": [[0], [1]],
        "5": [[0, 1], [2, 3]],
        "8": [[0, 1], [2, 3]],
        "11": [[0, 1, 2], [3, 4, 5]],
    }
    assert second == {
        "3": [[2], [2]],
        "5": [[4, 4], [4, 4]],
        "8": [[4, 5], [6, 7]],
        "11": [[6, 7, 8], [9, 10, 10]],
    }
