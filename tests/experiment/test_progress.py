import io
import sys

import pytest

from fad.experiment._progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    view = Progress("toy", 20)
    for t in range(1, 21):
        view.update(t, {"accuracy": 0.5, "server_lr": 1.0} if t % 5 == 0 else {})
    view.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("toy: round 20/20  accuracy 0.5000  ")
    assert lines[-1].endswith("rounds/s  0 s left")


def test_bar_on_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    view = Progress("toy", 3, start=1)
    view.update(2, {"loss": 0.25})
    view.update(3, {"loss": 0.125})
    view.close()
    assert "3/3" in stream.getvalue()


def test_bar_on_a_narrow_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "30")
    view = Progress("a-run-with-a-long-name", 3)
    view.update(3, {"accuracy": 0.25, "loss": 0.125})
    view.close()
    assert stream.getvalue()


def test_silent_when_switched_off(capsys):
    view = Progress("toy", 1, enabled=False)
    view.update(1, {"loss": 0.1})
    view.close()
    assert capsys.readouterr().err == ""


class Broken(io.StringIO):
    def write(self, text):
        raise OSError("disk full")


class BrokenTerminal(Terminal, Broken):
    pass


@pytest.mark.parametrize("stream", [Broken, BrokenTerminal])
def test_never_raises_into_the_run(monkeypatch, caplog, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    view = Progress("toy", 2)
    view.update(1, {})
    view.update(2, {})
    view.close()
    assert caplog.text.count("the progress display failed; going on") == 1
