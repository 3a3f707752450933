"""The mesh over all devices, and which clients each process holds."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import fad
import fad.distributed
from fad.distributed._mesh import process_range


def test_all_devices_by_clients_and_further_axes():
    assert dict(fad.distributed.mesh().shape) == {"clients": 8}
    both = fad.distributed.mesh(model=2)
    assert dict(both.shape) == {"clients": 4, "model": 2}
    assert [d.id for d in both.devices.ravel()] == [d.id for d in jax.devices()]
    some = fad.distributed.mesh(jax.devices()[:3])
    assert dict(some.shape) == {"clients": 3}


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"model": 3}, r"mesh\(model=3\): 8 devices cannot be split into groups of 3"),
        ({"model": 0}, r"mesh\(model=0\): expected the size, at least 1"),
        ({"model": 1.0}, r"mesh\(model=1\.0\): expected the size"),
        ({"clients": 2}, r"an axis other than 'clients', which takes the devices"),
        ({"devices": []}, r"0 devices cannot be split"),
    ],
)
def test_axes_that_cannot_be_are_refused(axes, expected):
    with pytest.raises(fad.FadError, match=expected):
        fad.distributed.mesh(**axes)


def _mesh_of(owners) -> Any:
    """Return what stands for a mesh whose devices belong to these processes."""
    owners = np.asarray(owners)
    devices = np.empty(owners.shape, object)
    for at, owner in np.ndenumerate(owners):
        devices[at] = SimpleNamespace(process_index=owner)
    names = ("clients", "model")[: owners.ndim]
    shape = dict(zip(names, owners.shape, strict=True))
    return SimpleNamespace(devices=devices, axis_names=names, shape=shape)


@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [0, 0, 0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("n", range(1, 13))
def test_processes_share_the_clients_in_order(owners, n):
    mesh = _mesh_of(owners)
    ranges = [process_range("f", n, mesh, p) for p in dict.fromkeys(owners)]
    assert [i for r in ranges for i in range(n)[r]] == list(range(n))


def test_processes_that_split_the_model_hold_the_same_clients():
    mesh = _mesh_of([[0, 1], [0, 1]])
    assert process_range("f", 5, mesh, 0) == process_range("f", 5, mesh, 1)
    assert process_range("f", 5, mesh, 1) == slice(0, 5)
    assert process_range("f", 5, mesh, 2) == slice(5, 5)


def test_scattered_devices_are_refused():
    expected = r"f: process 0's devices stand at the positions \[0, 2\] .* not next to"
    with pytest.raises(fad.FadError, match=expected):
        process_range("f", 5, _mesh_of([0, 1, 0]), 0)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_a_number_of_clients_that_is_none_is_refused(n):
    expected = r"local_range: n=.*: expected the number of clients of all processes"
    with pytest.raises(fad.FadError, match=expected):
        fad.distributed.local_range(n, fad.distributed.mesh())


def test_a_mesh_without_clients_is_refused():
    mesh = jax.make_mesh((8,), ("model",))
    expected = r"the mesh has the axes \('model',\), none of which is 'clients'"
    with pytest.raises(fad.FadError, match=expected):
        fad.distributed.local_range(5, mesh)
