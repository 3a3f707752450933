"""What solvers refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fad
from fad import FadError, PlacementError
from fad.local import Batches
from tests.solvers.programs import SOLVERS, WITH_PASSES, hard_cohort, loss_of

pytestmark = pytest.mark.once

names = pytest.mark.parametrize("name", SOLVERS)
Y = jnp.array([1.0, -2.0, 0.5])
LOSS = loss_of(jnp.array([0.5, -1.0]))


def _call(name):
    return "fad.solvers." + name.split()[0]


def _step(name: str, loss=LOSS, y: Any = Y, memory: Any = "own", cohort: Any = None):
    solver, good = SOLVERS[name](0.1), hard_cohort("float32")
    memory = solver.init(Y, good) if memory == "own" else memory
    cohort = good if cohort is None else cohort
    return solver.step(loss, y, memory, cohort, None)


@names
@pytest.mark.parametrize(
    ("lr", "came"),
    [
        (0, "int 0"),
        (-0.1, "float -0.1"),
        (float("nan"), "float nan"),
        (float("inf"), "float inf"),
        (True, "bool True"),
        ("fast", "str 'fast'"),
        (None, "NoneType None"),
        (jnp.array([0.1, 0.2]), r"float32\[2\]"),
        (jnp.array(1), r"int32\[\]"),
    ],
)
def test_step_sizes(name, lr, came):
    match = f"{_call(name)}: lr is {came}; expected a positive, finite number or a real"
    with pytest.raises(FadError, match=match):
        SOLVERS[name](lr)


def test_the_servers_step_size():
    with pytest.raises(FadError, match="scaffold: server_lr is int 0; expected a pos"):
        fad.solvers.scaffold(0.1, server_lr=0)


@names
def test_weightings(name):
    match = (
        f"{_call(name)}: unknown weighting 'example'. Did you mean 'examples'\\? Known "
        "weighting: examples, uniform."
    )
    with pytest.raises(FadError, match=match):
        SOLVERS[name](0.1, weighting="example")
    with pytest.raises(FadError, match=r"unknown weighting None\. Known weighting"):
        SOLVERS[name](0.1, weighting=None)


def test_options():
    match = "scaffold: unknown option 'III'. Did you mean 'II'\\? Known option: I, II."
    with pytest.raises(FadError, match=match):
        fad.solvers.scaffold(0.1, option="III")  # type: ignore


@names
@pytest.mark.parametrize(
    ("cohort", "came"),
    [
        (Batches(Y, Y, Y), "Batches"),
        (fad.AtClients(jnp.ones((4, 3))), r"AtClients\(float32\[4,3\]\)"),
        (7, "int 7"),
    ],
)
def test_cohorts(name, cohort, came):
    fix = r"expected fad.AtClients\(fad.local.Batches\(...\)\)"
    match = rf"{_call(name)}: step\(.*\): cohort is {came}; {fix}"
    with pytest.raises(FadError, match=match):
        _step(name, cohort=cohort)
    with pytest.raises(FadError, match=rf"init\(y, cohort\): cohort is {came}; {fix}"):
        SOLVERS[name](0.1).init(Y, cohort)


@names
def test_losses_of_another_shape(name):
    with pytest.raises(FadError, match=r"gave float32\[\]; expected one loss per row"):
        _step(name, loss=lambda y, rows: LOSS(y, rows).mean())
    with pytest.raises(FadError, match=r"gave float32\[\d,1\]; expected one loss per"):
        _step(name, loss=lambda y, rows: LOSS(y, rows)[:, None])


@names
def test_y_that_is_not_real(name):
    match = rf"{_call(name)}: step\(.*\): y\['n'\] is int32\[\]; expected real numbers"
    with pytest.raises(FadError, match=match):
        _step(name, y={"n": jnp.array(1), "w": Y})
    match = r"init\(y, cohort\): y is complex64\[\]; expected real numbers"
    with pytest.raises(FadError, match=match):
        SOLVERS[name](0.1).init(jnp.array(1j), hard_cohort())


def test_a_memory_that_is_not_scaffolds():
    match = r"scaffold: step\(.*\) got memory=NoneType None; expected the ControlVar"
    with pytest.raises(FadError, match=match):
        _step("scaffold II", memory=None)


def test_a_memory_of_another_cohort():
    cohort = jax.tree.map(lambda v: v[:3], hard_cohort("float32").unsafe_gather())
    memory = fad.solvers.scaffold(0.1).init(Y, fad.AtClients(cohort))
    with pytest.raises(PlacementError, match="disagree on the number of clients"):
        _step("scaffold II", memory=memory)


@pytest.mark.parametrize(
    ("q", "match"),
    [
        ({"w": Y}, r"corrected_round: q has the structure .*; expected that of y, "),
        (jnp.ones(2), r"corrected_round: q is float32\[2\], but y is float32\[3\]"),
        (Y.astype("bfloat16"), r"q is bfloat16\[3\], but y is float32\[3\]. Pass a "),
    ],
)
def test_directions_of_another_kind(q, match):
    with pytest.raises(FadError, match=match):
        fad.solvers.corrected_round(LOSS, Y, q, hard_cohort("float32"), None, lr=0.1)


def test_corrected_rounds_refuse_what_solvers_do():
    once = fad.solvers.corrected_round
    cohort = hard_cohort("float32")
    with pytest.raises(FadError, match="corrected_round: lr is int 0; expected"):
        once(LOSS, Y, Y, cohort, None, lr=0)
    with pytest.raises(FadError, match="corrected_round: unknown weighting 'no'"):
        once(LOSS, Y, Y, cohort, None, lr=0.1, weighting="no")  # type: ignore
    with pytest.raises(FadError, match="corrected_round: cohort is int 7; expected"):
        once(LOSS, Y, Y, 7, None, lr=0.1)  # type: ignore
    with pytest.raises(FadError, match=r"corrected_round: y is int32\[\]; expected"):
        once(LOSS, jnp.array(1), Y, cohort, None, lr=0.1)


@pytest.mark.parametrize("name", WITH_PASSES)
@pytest.mark.parametrize("passes", [0, True, 1.5])
def test_passes(name, passes):
    match = f"{_call(name)}: expected passes to be an int >= 1, got {passes!r}"
    with pytest.raises(FadError, match=match):
        SOLVERS[name](0.1, passes=passes)


def test_passes_of_a_corrected_round():
    call = "fad.solvers.corrected_round: expected passes to be an int >= 1, got 0"
    with pytest.raises(FadError, match=call):
        fad.solvers.corrected_round(
            LOSS, Y, Y, hard_cohort("float32"), None, lr=0.1, passes=0
        )
