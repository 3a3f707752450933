import errno
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from fad import RunError
from fad.experiment import JsonlWriter, MemoryWriter, read_rows
from fad.experiment._metrics import keep_rows, trailing_means
from fad.experiment._report import print_report, print_table, summary


def test_writers_agree(tmp_path):
    memory, jsonl = MemoryWriter(), JsonlWriter(tmp_path / "m.jsonl")
    for writer in (memory, jsonl):
        writer.write(1, {"loss": 0.1})
        writer.write(2, {"loss": math.inf, "bound": -math.inf})
    jsonl.close()
    assert read_rows(tmp_path / "m.jsonl") == memory.rows


def test_nan_survives_as_text(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    writer.write(1, {"x": math.nan})
    writer.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"round": 1, "x": "nan"}\n'
    assert math.isnan(read_rows(tmp_path / "m.jsonl")[0]["x"])


def test_keep_rows(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"round": 1, "x": 0.1}\n{"round": 2, "x": 1}\n{"rou')
    assert keep_rows(path, 1) == [{"round": 1, "x": 0.1}]
    assert path.read_text() == '{"round": 1, "x": 0.1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_missing_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none") == []


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_broken_line(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"round": 1}}\n{line}\n{{"round": 3}}\n')
    with pytest.raises(RunError, match=r"m\.jsonl:2: not a JSON object: "):
        read_rows(path)


ROWS = [
    {"round": 1, "loss": 0.5, "seconds": 1.0, "bytes_down": 5e5, "bytes_up": 1e5},
    {"round": 2, "accuracy": 0.9, "seconds": 0.5, "bytes_down": 1e6, "bytes_up": 2e5},
]


def test_summary():
    assert summary(ROWS) == {
        "loss": 0.5,
        "accuracy": 0.9,
        "rounds": 2,
        "mb_down": 1.0,
        "mb_up": 0.2,
        "seconds": 1.5,
    }


def test_report(capsys):
    print_report("toy [1]", ROWS)
    text = capsys.readouterr().out
    for cell in ("toy [1]", "0.9000", "0.5000", "1.000", "0.200", "1.50"):
        assert cell in text


def test_report_without_rows():
    with pytest.raises(RunError, match="print_report: rows: expected at least one row"):
        print_report("toy", [])


HEAD = ["run", "final accuracy", "rounds to target", "MB to target"]


@pytest.mark.parametrize("width", [80, 50, 45, 30, 5])
def test_narrow_terminal_cuts_nothing(width):
    name = "a run with a long name (diverged at round 12)"
    stream = io.StringIO()
    console = Console(width=width, file=stream)
    print_table(HEAD, [[name, "0.9123", "1234567", "-"]], console=console)
    text = stream.getvalue()
    assert "…" not in text
    cells = ("accuracy", "0.9123", "1234567", "target", "name", "12)")
    for cell in cells:
        assert cell in text
    if width >= 50:
        assert max(map(len, text.splitlines())) <= width


def test_trailing_means():
    rows = [{"round": t, "x": float(t)} for t in (1, 2, 3, 4)]
    rows[2:2] = [{"round": 9}, {"round": 9, "x": math.nan}]
    means = trailing_means(rows, "x", window=3)
    assert [(row["round"], mean) for row, mean in means] == [
        (1, 1.0),
        (2, 1.5),
        (3, 2.0),
        (4, 3.0),
    ]
    assert [mean for _, mean in trailing_means(rows, "x")] == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full():
    writer = JsonlWriter(Path("/dev/full"))
    message = r"/dev/full: cannot be written: No space left on device\. Free some space"
    with pytest.raises(RunError, match=message):
        writer.write(1, {"x": 1.0})
    with pytest.raises(RunError, match=message):
        writer.close()


def test_unwritable(tmp_path):
    with pytest.raises(RunError, match=r": cannot be written: Is a dir.*--runs-dir\."):
        JsonlWriter(tmp_path)


@pytest.mark.parametrize("text", [b"\xff\n", None])
def test_unreadable(tmp_path, monkeypatch, text):
    path = tmp_path / "m.jsonl"
    path.write_bytes(text or b"")
    if text is None:
        denied = PermissionError(errno.EACCES, "Permission denied")

        def read_text(*args, **options):
            raise denied

        monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(RunError, match=r"m\.jsonl: cannot be read: .*(utf-8|denied)"):
        read_rows(path)
