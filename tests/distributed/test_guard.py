"""An error of a lost process is told as such, and no other is touched."""

import jax
import pytest

import fad
from fad.distributed import _ending, guard

CLOSED = "UNKNOWN: Gloo all-reduce failed: pair.cc:547] Connection closed by peer"
LATE = "UNKNOWN: Gloo all-reduce failed: Timed out waiting 45000ms for recv operation"
COORDINATOR = "UNAVAILABLE: Failed to send RPC to coordination service. Socket closed"


@pytest.fixture
def _two_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(_ending, "_failed", False)


@pytest.mark.usefixtures("_two_processes")
@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CLOSED, "another process ended in the middle of the run"),
        (COORDINATOR, "another process ended in the middle of the run"),
        (
            LATE,
            r"another process did not answer in time: .*\(collective_seconds=",
        ),
    ],
)
def test_a_lost_process(kind, text, expected):
    expected = rf"^fad\.jit\(f\): process 0 of 2 reports that {expected}.*checkpoint"
    with pytest.raises(fad.RunError, match=expected), guard("fad.jit(f)"):
        raise kind(text)
    assert _ending._failed


@pytest.mark.usefixtures("_two_processes")
@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        RuntimeError(CLOSED),
        fad.RunError("heartbeat_seconds: expected whole seconds"),
        KeyError("x"),
    ],
)
def test_another_error(error):
    with pytest.raises(type(error)) as raised, guard("fad.jit(f)"):
        raise error
    assert raised.value is error
    assert not _ending._failed


def test_in_one_process_nothing_is_touched():
    error = jax.errors.JaxRuntimeError(CLOSED)
    with pytest.raises(jax.errors.JaxRuntimeError) as raised, guard("fad.jit(f)"):
        raise error
    assert raised.value is error
