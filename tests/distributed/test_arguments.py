"""What ``fad.distributed.initialize`` is told, and what it refuses."""

import subprocess
import sys

import jax
import pytest

import fad.distributed
from fad.distributed import _initialize, _runtime
from fad.distributed._settings import read_settings
from tests.distributed.job import ROOT, environment

ALL = {"coordinator": "host:1", "num_processes": 2, "process_id": 0}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "LOCAL_DEVICES"):
        monkeypatch.delenv(f"FAD_{name}", raising=False)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)


@pytest.fixture
def _fresh(monkeypatch):
    """As if JAX had not started in this process."""
    monkeypatch.setattr(_runtime, "backend_started", lambda: False)


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("coordinator", "host", r"expected host:port of process 0, with a port"),
        ("coordinator", "host:", r"expected host:port"),
        ("coordinator", ":80", r"expected host:port"),
        ("coordinator", "host:70000", r"coordinator='host:70000': expected host:port"),
        ("num_processes", 0, r"num_processes=0: expected at least 1"),
        ("num_processes", 2.0, r"num_processes=2\.0: expected a whole number"),
        ("num_processes", True, r"num_processes=True: expected a whole number"),
        ("process_id", -1, r"process_id=-1: expected at least 0"),
        ("process_id", 2, r"process_id=2: expected a number from 0 to 1, as there are"),
        ("local_devices", 0, r"local_devices=0: expected at least 1"),
        ("local_devices", ["a"], r"local_devices='a': expected a whole number"),
        ("heartbeat_seconds", 0, r"heartbeat_seconds=0: expected whole seconds"),
        ("collective_seconds", 1.5, r"collective_seconds=1\.5: expected whole seconds"),
        ("start_seconds", True, r"start_seconds=True: expected whole seconds"),
    ],
)
def test_a_wrong_argument_is_named(argument, value, expected):
    with pytest.raises(fad.FadError, match=rf"initialize: .*{expected}"):
        fad.distributed.initialize(**(ALL | {argument: value}))


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("FAD_COORDINATOR", "host", "FAD_COORDINATOR='host': expected host:port"),
        ("JAX_COORDINATOR_ADDRESS", "host", "JAX_COORDINATOR_ADDRESS='host': expected"),
        ("FAD_NUM_PROCESSES", "two", "FAD_NUM_PROCESSES='two': expected a whole"),
        ("FAD_PROCESS_ID", "-1", "FAD_PROCESS_ID='-1': expected a whole number"),
        ("FAD_LOCAL_DEVICES", "0,x", "FAD_LOCAL_DEVICES='x': expected a whole number"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    with pytest.raises(fad.FadError, match=expected):
        fad.distributed.initialize()


def test_arguments_go_before_the_environment(monkeypatch):
    monkeypatch.setenv("FAD_COORDINATOR", "[::1]:80")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "other:80")
    monkeypatch.setenv("FAD_NUM_PROCESSES", "3")
    monkeypatch.setenv("FAD_PROCESS_ID", "2")
    monkeypatch.setenv("FAD_LOCAL_DEVICES", "0,1")
    from_environment = ("[::1]:80", 3, 2, (0, 1))
    assert read_settings(None, None, None, None) == from_environment
    assert read_settings("a:1", 5, 4, [3]) == ("a:1", 5, 4, (3,))
    assert read_settings(None, None, None, 4).local_devices == 4


def test_a_started_backend_is_refused():
    jax.devices()
    with pytest.raises(fad.FadError, match="JAX has already started its devices"):
        fad.distributed.initialize(**ALL)


@pytest.mark.usefixtures("_fresh")
def test_a_second_call_is_refused(monkeypatch):
    monkeypatch.setattr(_initialize, "_called", True)
    with pytest.raises(fad.FadError, match="it was called before in this process"):
        fad.distributed.initialize(**ALL)


@pytest.mark.usefixtures("_fresh")
def test_virtual_devices_on_an_accelerator_are_refused(monkeypatch):
    monkeypatch.setattr(_runtime, "runs_on_cpu", lambda: False)
    expected = r"local_devices=2: a number of virtual devices is for CPU.*\(0, 1,\)"
    with pytest.raises(fad.FadError, match=expected):
        fad.distributed.initialize(**ALL, local_devices=2)


INCOMPLETE = """
import fad.distributed, jax
for given in ({}, {"num_processes": 2}, {"coordinator": "host:1", "process_id": 0}):
    try:
        fad.distributed.initialize(**given)
    except fad.FadError as error:
        print(error)
fad.distributed.initialize(num_processes=1, local_devices=3)
print(len(jax.devices()), jax.process_count())
try:
    fad.distributed.initialize(num_processes=1)
except fad.FadError as error:
    print(error)
"""


def test_what_is_not_given_is_named_and_one_process_needs_nothing():
    env = environment("", 1, 0)
    env = {k: v for k, v in env.items() if not k.startswith("FAD_")}
    command = [sys.executable, "-c", INCOMPLETE]
    out = subprocess.run(
        command, cwd=ROOT, env=env, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    start = "fad.distributed.initialize: "
    for line, missing in zip(
        out,
        (
            "coordinator, num_processes, process_id not given (nothing is), and no",
            "coordinator, process_id not given (num_processes is), and no cluster",
            "num_processes not given (coordinator, process_id is), and no cluster",
        ),
        strict=False,
    ):
        assert line.startswith(start + missing)
        assert line.endswith("num_processes=1 runs alone.")
    assert out[3] == "3 1"
    assert out[4].startswith(start + "it was called before in this process")
    assert len(out) == 5
