"""One client per distinct value."""

import numpy as np
import pytest

from fad.data import partition_by


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.array([10, 9, 10, -1]), ("-1", "9", "10")),
        (np.array(["b", "a", "b", "Z"]), ("Z", "a", "b")),
        (np.array([b"b", "é".encode(), b"b", b"\xff"], object), ("b", "é", "\\xff")),
        (np.array([True, False, True]), ("False", "True")),
        (np.array(["x", "long one", "x"], object), ("long one", "x")),
    ],
    ids=["integers", "texts", "bytes", "booleans", "objects"],
)
def test_clients_come_in_the_order_of_the_values(values, names):
    parts, given = partition_by(values)
    assert given == names
    for part in parts:
        assert len(set(values[part])) == 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(values)))


def test_refuses_two_values_of_one_name():
    match = r"partition_by\(values=.*are two values, but both read '.*xff' as a name"
    with pytest.raises(ValueError, match=match):
        partition_by(np.array([b"\xff", rb"\xff", b"a"]))


@pytest.mark.parametrize("values", [np.array([0.5, np.nan]), np.array([None, "a"])])
def test_refuses_values(values):
    match = r"partition_by\(values=\.\.\.\): expected integers or texts, of one kind"
    with pytest.raises(ValueError, match=match):
        partition_by(values)
