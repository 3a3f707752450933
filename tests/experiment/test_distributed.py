"""One experiment run by two processes: stopped, killed, and resumed by one."""

import signal

import numpy as np
import pytest

from algorithms import ALGORITHMS
from fad.experiment import main, read_rows
from tests.distributed.job import RESTART, ROOT, Job

pytestmark = pytest.mark.once

CONFIG = str(ROOT / "configs" / "digits_fedavg.toml")
FLAGS = ["--rounds", "30", "--checkpoint-every", "2", "--epochs", "2"]


def _run_of_two(folder, *flags):
    """Start the experiment in two processes, and wait for its first line."""
    folder.mkdir()
    args = [CONFIG, *FLAGS, "--runs-dir", str(folder.parent), *flags]
    job = Job(folder, *args, "--distributed", module="algorithms")
    job.reaches(0, "digits_fedavg: round ")
    return job


@pytest.mark.slow
def test_two_processes_give_one_s_numbers_through_a_stop_and_a_kill(tmp_path, capfd):
    with _run_of_two(tmp_path / "first") as job:
        job.send(1, signal.SIGTERM)
        assert [job.wait(p) for p in (0, 1)] == [130, 130]
        for p in (0, 1):
            job.says(p, "digits_fedavg: stopped after round ")
        assert "digits_fedavg: round " not in job.output(1)
    stopped = len(read_rows(tmp_path / "digits_fedavg" / "metrics.jsonl"))
    assert 3 <= stopped < 30
    with _run_of_two(tmp_path / "second", "--resume") as job:
        job.send(1, signal.SIGKILL)
        assert job.wait(0) == 2
        job.says(0, RESTART)
    path = tmp_path / "digits_fedavg" / "metrics.jsonl"
    assert stopped < len(read_rows(path)) < 30
    main(ALGORITHMS, [CONFIG, *FLAGS, "--runs-dir", str(tmp_path), "--resume"])
    alone = tmp_path / "alone"
    main(ALGORITHMS, [CONFIG, *FLAGS, "--runs-dir", str(alone)])
    expected = read_rows(alone / "digits_fedavg" / "metrics.jsonl")
    rows = read_rows(path)
    assert [r["round"] for r in rows] == [r["round"] for r in expected]
    for name in ("train_loss", "loss", "accuracy", "bytes_up"):
        got = [row[name] for row in rows]
        np.testing.assert_allclose(got, [r[name] for r in expected], 1e-5, 1e-5)


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_all(tmp_path):
    (tmp_path / "digits_fedavg").mkdir()
    (tmp_path / "digits_fedavg" / "notes.txt").touch()
    args = [CONFIG, "--runs-dir", str(tmp_path), "--distributed"]
    with Job(tmp_path, *args, module="algorithms") as job:
        for p in (0, 1):
            assert job.wait(p) == 2
            job.says(p, "error: " + str(tmp_path / "digits_fedavg"))
            job.says(p, "the folder exists and holds notes.txt")
