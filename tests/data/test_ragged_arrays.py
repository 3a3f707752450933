import numpy as np
import pytest

from fad.data._ragged_arrays import flatten_column, restore_column


def _objects(*items):
    made = np.empty(len(items), object)
    for i, item in enumerate(items):
        made[i] = item
    return made


def _assert_same(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if a.dtype != object:
        np.testing.assert_array_equal(a, b)
        return
    for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True):
        if isinstance(x, np.ndarray):
            _assert_same(x, y)
        else:
            assert x == y


@pytest.mark.parametrize(
    "column",
    [
        np.arange(6, dtype=np.int16).reshape(3, 2),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        _objects(b"", b"abc", b"\x00\n"),
        np.array([[b"a", b""], [b"bc", b"d"]], object),
        _objects(np.zeros((2, 0)), np.ones((1, 3)), np.zeros((0, 5))),
        _objects(np.array([b"a", b"bc"], object), np.array([], object)),
        _objects(_objects(np.arange(2), np.arange(0)), _objects()),
        np.zeros(0, object),
    ],
    ids=str,
)
def test_there_and_back(column):
    arrays = flatten_column(column)
    assert all(x.dtype != object for x in arrays.values())
    _assert_same(restore_column(arrays), column)


@pytest.mark.parametrize(
    "column",
    [
        _objects(b"a", 1),
        _objects(None),
        _objects(np.arange(2), np.arange(2.0)),
        _objects(np.arange(2), np.ones((1, 2), int)),
    ],
    ids=str,
)
def test_refuses_objects_of_several_kinds(column):
    with pytest.raises(TypeError, match="expected bytes or arrays of one kind"):
        flatten_column(column)
