"""``AtClients``, ``program`` and what they refuse."""

import copy
import dataclasses
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.subjects import assert_same

X, Y = jnp.arange(12.0).reshape(4, 3), jnp.ones(4)


class Local(NamedTuple):
    delta: Any
    count: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    delta: Any
    count: Any


# ------------------------------------------------------------------------------------
# AtClients
# ------------------------------------------------------------------------------------


def test_projection_by_key():
    data = fad.AtClients({"x": X, "inner": {"y": Y}})
    assert isinstance(data["x"], fad.AtClients)
    assert_same(data["x"], X)
    assert_same(data["inner"]["y"], Y)
    with pytest.raises(KeyError, match="z"):
        data["z"]


@pytest.mark.parametrize("kind", [Local, Record])
def test_projection_by_attribute(kind):
    local = fad.AtClients(kind(delta=X, count=Y))
    assert isinstance(local.delta, fad.AtClients)
    assert_same(local.delta, X)
    assert_same(local.count, Y)


@pytest.mark.parametrize("kind", [tuple, list, lambda v: Local(*v)])
def test_projection_by_unpacking_and_position(kind):
    data = fad.AtClients(kind([X, Y]))
    first, second = data
    assert isinstance(first, fad.AtClients)
    assert_same(first, X)
    assert_same(second, Y)
    assert_same(data[1], Y)
    with pytest.raises(IndexError):
        data[2]


def test_the_number_of_clients():
    assert fad.AtClients({"x": X, "y": Y}).num_clients == 4
    assert fad.AtClients(jax.ShapeDtypeStruct((7,), jnp.float32)).num_clients == 7
    assert fad.AtClients({}).num_clients == 0


def test_unsafe_gather_gives_the_tree():
    tree = {"x": X}
    assert fad.AtClients(tree).unsafe_gather() is tree


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (X, "AtClients(float32[4,3])"),
        ({"x": X, "y": Y}, "AtClients({'x': float32[4,3], 'y': float32[4]})"),
        (Local(X, (Y,)), "AtClients(Local(delta=float32[4,3], count=(float32[4])))"),
        ([Y, np.ones(4, np.int8)], "AtClients([float32[4], int8[4]])"),
        ({}, "AtClients({})"),
    ],
)
def test_repr(tree, text):
    assert repr(fad.AtClients(tree)) == text


def test_repr_of_a_traced_value():
    seen = []
    jax.jit(lambda d: seen.append(repr(d)))(fad.AtClients({"x": X}))
    assert seen == ["AtClients({'x': float32[4,3]})"]


def test_the_mark_is_no_part_of_a_pytree_path():
    tree = {"data": fad.AtClients({"x": (X,)})}
    ((path, leaf),) = jax.tree_util.tree_leaves_with_path(tree)
    assert jax.tree_util.keystr(path) == "['data']['x'][0]"
    assert leaf is X
    again = jax.tree_util.tree_leaves_with_path(tree)[0][0]
    assert (path, hash(path)) == (again, hash(again))


def test_tree_map_keeps_the_mark():
    doubled = jax.tree.map(lambda v: 2 * v, fad.AtClients({"x": X}))
    assert isinstance(doubled, fad.AtClients)
    assert_same(doubled, {"x": 2 * X})


def test_a_tree_of_placeholders_can_be_rebuilt():
    structure = jax.tree.structure(fad.AtClients({"x": X}))
    assert jax.tree.unflatten(structure, [None]).unsafe_gather() == {"x": None}
    assert jax.tree.unflatten(structure, ["text"]).unsafe_gather() == {"x": "text"}


def test_jit_and_scan_carry_it():
    data = fad.AtClients({"x": X})
    assert_same(jax.jit(lambda d: d)(data), data)
    carried, _ = jax.lax.scan(lambda c, _: (c, None), data, None, length=2)
    assert isinstance(carried, fad.AtClients)
    assert_same(carried, data)


def test_hash_is_identity():
    data = fad.AtClients(X)
    assert hash(data) == hash(data)
    assert {data: 1}[data] == 1


def test_hasattr_is_safe():
    data = fad.AtClients(X)
    assert not hasattr(data, "shape")
    assert not hasattr(data, "anything")
    assert not hasattr(fad.AtClients({"x": X}), "x")
    assert hasattr(fad.AtClients(Local(X, Y)), "delta")


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies(again):
    data = again(fad.AtClients({"x": X}))
    assert isinstance(data, fad.AtClients)
    assert_same(data, {"x": X})


@pytest.mark.parametrize("name", ["shape", "dtype", "mean", "T", "at", "ndim"])
def test_array_attributes_are_refused(name):
    with pytest.raises(
        fad.ClientValueError, match=rf"\.{name} on a client value.*outside fad.map"
    ):
        getattr(fad.AtClients(X), name)
    with pytest.raises(AttributeError):
        getattr(fad.AtClients(X), name)


def test_an_unknown_attribute():
    with pytest.raises(
        AttributeError, match=r"AtClients of \{'x': float32\[4,3\]\} has no 'y'"
    ):
        _ = fad.AtClients({"x": X}).y


def test_indexing_an_array_is_refused():
    with pytest.raises(fad.ClientValueError, match=r"\[0\] on a client value"):
        fad.AtClients(X)[0]


def test_iterating_over_clients_is_refused():
    with pytest.raises(fad.ClientValueError, match="iteration on a client value"):
        list(fad.AtClients(X))
    with pytest.raises(fad.ClientValueError, match="iteration on a client value"):
        list(fad.AtClients({"x": X}))


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (1.0, "tree is float 1.0"),
        ({"a": X, "b": ["s"]}, r"tree\['b'\]\[0\] is str 's'"),
        ({"a": jnp.ones(())}, r"tree\['a'\] is float32\[\]"),
    ],
)
def test_leaves_without_a_client_axis_are_refused(tree, text):
    with pytest.raises(
        fad.PlacementError, match=rf"{text}, but a client value needs an array"
    ):
        fad.AtClients(tree)


def test_leaves_that_disagree_are_listed():
    listing = r"\[3, 4\]:\n  tree\['a'\]: float32\[4\]\n  tree\['b'\]: float32\[3\]"
    with pytest.raises(
        fad.PlacementError, match=f"disagree on the number of clients, {listing}"
    ):
        fad.AtClients({"a": Y, "b": jnp.ones(3)})


def test_no_clients_are_refused():
    with pytest.raises(fad.PlacementError, match=r"tree\['a'\] has no clients"):
        fad.AtClients({"a": jnp.ones((0, 3))})


# ------------------------------------------------------------------------------------
# program
# ------------------------------------------------------------------------------------


def _count(*args, **kwargs):
    del args, kwargs
    return fad.sum(fad.broadcast(1))


def test_the_number_of_clients_comes_from_the_arguments():
    assert fad.program(_count)(fad.AtClients(X)) == 4
    assert fad.program(_count)(1.0, deep={"a": [fad.AtClients(X)]}) == 4


def test_the_number_of_clients_comes_from_the_decorator():
    @fad.program(clients=5)
    def five():
        return _count()

    assert five() == 5


def test_the_number_of_clients_comes_from_the_caller():
    inner = fad.program(_count)
    assert fad.program(lambda d: inner())(fad.AtClients(X)) == 4


def test_nested_programs_have_their_own_number():
    inner = fad.program(_count, clients=2)
    outer = fad.program(lambda: (_count(), inner(), _count()), clients=3)
    assert [int(v) for v in outer()] == [3, 2, 3]


def test_a_program_keeps_its_name_and_doc():
    @fad.program
    def fl_round(params):
        """Do a round."""

    assert (fl_round.__name__, fl_round.__doc__) == ("fl_round", "Do a round.")


@pytest.mark.parametrize("clients", [0, -1, 2.0, "4"])
def test_a_bad_number_of_clients(clients):
    with pytest.raises(fad.FadError, match=r"clients=\.\.\.\): expected int >= 1, got"):
        fad.program(_count, clients=clients)


def test_an_unknown_number_of_clients():
    @fad.program
    def fl_round(params):
        return params

    message = r"fl_round\(\.\.\.\): no argument is AtClients"
    with pytest.raises(fad.PlacementError, match=message):
        fl_round(1.0)


def test_arguments_that_disagree_with_the_decorator():
    def fl_round(params, batch):
        del params, batch

    listing = r"have 4:\n  batch: AtClients\(float32\[4,3\]\)\nPass 3 clients"
    with pytest.raises(fad.PlacementError, match=rf"fl_round.*clients=3.*{listing}"):
        fad.program(fl_round, clients=3)(1.0, fad.AtClients(X))


def test_arguments_that_disagree_with_each_other():
    def fl_round(a, b):
        del a, b

    listing = r"\[3, 4\]:\n  a: float32\[4,3\]\n  b\['q'\]: float32\[3\]"
    with pytest.raises(fad.PlacementError, match=f"disagree.*{listing}"):
        fad.program(fl_round)(fad.AtClients(X), {"q": fad.AtClients(jnp.ones(3))})


def test_a_wrong_call_is_told_by_python():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        fad.program(lambda a, b: a)(fad.AtClients(X))
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        fad.program(lambda a: a)(fad.AtClients(X), c=fad.AtClients(X))


def test_every_error_is_a_value_error():
    assert issubclass(fad.PlacementError, fad.FadError)
    assert issubclass(fad.ClientValueError, TypeError)
    assert issubclass(fad.FadError, ValueError)
