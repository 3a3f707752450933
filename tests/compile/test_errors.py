"""What ``fad.jit`` refuses, and how it says so."""

from typing import Any

import jax
import numpy as np
import pytest

import fad
from tests.compile.programs import average


@pytest.mark.parametrize(
    "chunk", [0, -1, 1.5, True, False, "big", "1", (), np.float32(2)]
)
def test_chunks(chunk):
    with pytest.raises(
        fad.FadError,
        match=r"fad.jit\(average\): chunk=.*; expected an int >= 1 \(clients at a "
        r"time\), None \(all at once\) or \"auto\"",
    ):
        fad.jit(average, chunk=chunk)


@pytest.mark.parametrize("chunk", [np.int32(2), np.int64(1)])
def test_whole_numbers_of_numpy_are_chunks(chunk):
    compiled: Any = fad.jit(average, chunk=chunk)
    assert compiled.__name__ == "average"


def test_a_mesh_without_clients():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    with pytest.raises(
        fad.FadError,
        match=r"fad.jit\(average\): the mesh has the axes \{'data': 4, 'model': 2\}, "
        "none of which is named 'clients'",
    ):
        fad.jit(average, mesh=mesh)


@pytest.mark.parametrize("mesh", [8, "clients", jax.devices()])
def test_no_mesh(mesh):
    with pytest.raises(
        fad.FadError, match=r"fad.jit\(average\): mesh=.* is no jax.sharding.Mesh"
    ):
        fad.jit(average, mesh=mesh)


def test_no_function():
    with pytest.raises(fad.FadError, match=r"fad\.jit\(int 3\): expected a function"):
        fad.jit(3)  # type: ignore[arg-type]
