"""How a process ends: its witness, and the lifelines that process 0 holds."""

import socket
import threading
import time

import jax
import pytest

import fad
from fad.distributed import _ending
from fad.distributed._ending import Lifelines, Witness


def _as_process(monkeypatch, number, told):
    """Stand for this process of two; process 0 tells, the other is told."""

    def gather_text(text):
        told.extend([text] if number == 0 else [])
        return told

    monkeypatch.setattr(jax, "process_index", lambda: number)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(_ending, "gather_text", gather_text)


def test_process_0_waits_for_the_other_and_ignores_strangers(monkeypatch):
    told, held = [], []
    _as_process(monkeypatch, 0, told)
    door = threading.Thread(target=lambda: held.append(Lifelines("f", "", 20)))
    door.start()
    while not told:
        time.sleep(0.01)
    port, token, name = told[0].split()
    assert name == socket.gethostname()
    there = ("127.0.0.1", int(port))
    with socket.create_connection(there) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with socket.create_connection(there) as other:
        other.sendall(bytes.fromhex(token))
        door.join()
        threading.Timer(0.5, other.shutdown, [socket.SHUT_RDWR]).start()
        start = time.monotonic()
        held[0].wait_for_others(20)
        assert 0.3 < time.monotonic() - start < 10


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_another_process_goes_to_the_host_given_or_told(monkeypatch, host):
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        name = "nowhere.invalid" if host else "127.0.0.1"
        _as_process(monkeypatch, 1, [f"{port} 2a {name}"])
        Lifelines("f", host, 5)
        door.settimeout(5)
        caller, _ = door.accept()
        with caller:
            assert caller.recv(9) == b"*"


def test_process_0_does_not_wait_for_ever_for_the_start(monkeypatch):
    _as_process(monkeypatch, 0, [])
    expected = "f: process 0 of 2 has no connection with process 0: timed out"
    with pytest.raises(fad.RunError, match=expected):
        Lifelines("f", "", 0)


def test_a_host_that_cannot_be_reached_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    _as_process(monkeypatch, 1, [f"{port} 00 name"])
    expected = r"f: process 1 of 2 has no connection with process 0 at 127\.0\.0\.1: .*"
    with pytest.raises(fad.RunError, match=expected + "reach each other on any port"):
        Lifelines("f", "127.0.0.1", 5)


def test_a_witness_repeats_the_last_words_alone(capfd):
    witness = Witness("first\n")
    witness.say("last\n")
    assert witness._child.stdin is not None
    witness._child.stdin.close()  # as if this process were gone
    witness._child.wait()
    assert capfd.readouterr().err == "last\n"


def test_a_witness_of_a_good_end_is_silent(capfd):
    Witness("words\n").close()
    assert capfd.readouterr().err == ""
